#pragma once

// The home of Boost.JSON: every other file that reads or writes JSON includes this one.

#include <boost/json.hpp>

#pragma once

#include <string_view>

namespace dd2 {

// Version of this build: "0.1.0+g1a2b3c4" with the commit it was configured from, "-dirty" when the
// tree had changes; "0.1.0" outside a checkout.
std::string_view CodeVersion();

}  // namespace dd2

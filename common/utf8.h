#pragma once

#include <string>

namespace dd2 {

// `text` with every byte that belongs to no UTF-8 character replaced by '?'. What comes out of
// damaged files and off command lines may be anything, and goes into messages, JSON and the
// journal, where a text must be UTF-8.
std::string ToUtf8(std::string text);

}  // namespace dd2

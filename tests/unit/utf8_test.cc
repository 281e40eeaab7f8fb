#include "common/utf8.h"

#include <gtest/gtest.h>

#include "common/result.h"

namespace dd2 {
namespace {

TEST(Utf8, KeepsWhatIsText) {
  for (const char* text :
       {"", "plain",
        "gr\xc3\xb6\xc3\x9f"
        "er",
        "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xed\x9f\xbf", "\xee\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    EXPECT_EQ(ToUtf8(text), text);
  }
}

TEST(Utf8, EveryOtherByteBecomesAQuestionMark) {
  const std::pair<const char*, const char*> cases[] = {
      {"a\xff"
       "b",
       "a?b"},                       // never part of a character
      {"\x80", "?"},                 // a second byte alone
      {"\xc3", "?"},                 // cut off
      {"\xe2\x82", "??"},            // cut off
      {"\xc3(", "?("},               // something else follows
      {"\xc0\xaf", "??"},            // overlong
      {"\xe0\x9f\xbf", "???"},       // overlong
      {"\xed\xa0\x80", "???"},       // surrogate
      {"\xf4\x90\x80\x80", "????"},  // beyond U+10FFFF
      {"\xf0\x8f\xbf\xbf", "????"},  // overlong
      {"\xe2\x82\xe2\x82\xac", "??\xe2\x82\xac"}};
  for (const auto& [bad, good] : cases) EXPECT_EQ(ToUtf8(bad), good);
}

TEST(Utf8, MessagesOfErrorsAreText) {
  EXPECT_EQ(Error(Code::kCorruption, "tensor 'w\xfe' is unknown").message(),
            "tensor 'w?' is unknown");
}

}  // namespace
}  // namespace dd2

#pragma once

#include <string>
#include <string_view>

#include "common/result.h"

namespace google::protobuf {
class Message;
}  // namespace google::protobuf

namespace dd2 {

// The home of Protobuf's own interface: everyone else sees generated classes only.

// Makes every text in it UTF-8 (ToUtf8): Protobuf writes others and then refuses to read them.
void MakeTextsUtf8(google::protobuf::Message& message);

// The JSON form with the field names of the .proto file, indented; 64-bit integers are strings.
// kInternal when Protobuf refuses (invalid UTF-8 in a string field).
Result<std::string> MessageToJson(const google::protobuf::Message& message);
// The inverse; unknown fields are errors. kInvalidArgument with Protobuf's reason.
Status JsonToMessage(std::string_view json, google::protobuf::Message& message);

}  // namespace dd2

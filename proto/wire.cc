#include "proto/wire.h"

#include <google/protobuf/message.h>
#include <google/protobuf/util/json_util.h>

namespace dd2 {

Result<std::string> MessageToJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(message, &json, options);
  if (!status.ok()) {
    return Error(Code::kInternal,
                 message.GetTypeName() + " has no JSON form: " + status.ToString());
  }
  return json;
}

Status JsonToMessage(std::string_view json, google::protobuf::Message& message) {
  message.Clear();
  const auto status = google::protobuf::util::JsonStringToMessage(
      google::protobuf::StringPiece(json.data(), json.size()), &message);
  if (!status.ok()) {
    return Error(Code::kInvalidArgument,
                 "not a " + message.GetTypeName() + " in JSON: " + status.ToString());
  }
  return {};
}

}  // namespace dd2

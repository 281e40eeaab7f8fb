#include "proto/wire.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/util/json_util.h>

#include <vector>

#include "common/utf8.h"

namespace dd2 {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

void MakeTextsUtf8In(const FieldDescriptor& field, const Reflection& reflection, Message& message) {
  const bool text = field.type() == FieldDescriptor::TYPE_STRING;
  if (!text && field.cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) return;
  if (!field.is_repeated()) {
    if (text) {
      reflection.SetString(&message, &field, ToUtf8(reflection.GetString(message, &field)));
    } else {
      MakeTextsUtf8(*reflection.MutableMessage(&message, &field));
    }
    return;
  }
  for (int i = 0; i < reflection.FieldSize(message, &field); ++i) {
    if (text) {
      reflection.SetRepeatedString(&message, &field, i,
                                   ToUtf8(reflection.GetRepeatedString(message, &field, i)));
    } else {
      MakeTextsUtf8(*reflection.MutableRepeatedMessage(&message, &field, i));
    }
  }
}

}  // namespace

void MakeTextsUtf8(Message& message) {
  const Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) MakeTextsUtf8In(*field, reflection, message);
}

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

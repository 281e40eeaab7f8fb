#include "coordinator/rendezvous_store.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <utility>

#include "common/limits.h"
#include "common/timeouts.h"

namespace dd2 {

namespace {

proto::StoreReply Refusal(std::string message) {
  proto::StoreReply reply;
  reply.set_ok(false);
  reply.set_message(std::move(message));
  return reply;
}

proto::StoreReply Value(const std::string& value) {
  proto::StoreReply reply;
  reply.set_ok(true);
  reply.set_value(value);
  return reply;
}

StoreAnswer Answer(StoreTicket ticket, proto::StoreReply reply) {
  StoreAnswer answer;
  answer.ticket = ticket;
  answer.reply = std::move(reply);
  return answer;
}

}  // namespace

std::vector<StoreAnswer> RendezvousStore::Handle(StoreTicket ticket, Generation generation,
                                                 const proto::StoreRequest& request,
                                                 TimePoint now) {
  std::vector<StoreAnswer> answers;
  if (generation != generation_ || generation == Generation(0)) {
    answers.push_back(Answer(
        ticket, Refusal("generation " + std::to_string(generation.value()) +
                        " is not the current one (" + std::to_string(generation_.value()) + ")")));
    return answers;
  }
  const bool waits =
      request.op() == proto::StoreRequest::GET || request.op() == proto::StoreRequest::WAIT;
  if (!waits) {
    answers.push_back(Answer(ticket, Now(request)));
    for (StoreAnswer& ready : TakeReady()) answers.push_back(std::move(ready));
    return answers;
  }
  Waiting waiting;
  waiting.wants_value = request.op() == proto::StoreRequest::GET;
  if (waiting.wants_value) {
    waiting.keys.push_back(request.key());
  } else {
    waiting.keys.assign(request.keys().begin(), request.keys().end());
  }
  const auto limit = request.timeout_ms() > 0 ? std::chrono::milliseconds(request.timeout_ms())
                                              : timeouts::kStoreDefault;
  // A day at most, so that the sum cannot overflow.
  waiting.deadline = now + std::min<std::chrono::milliseconds>(limit, std::chrono::hours(24));
  waiting_[ticket] = std::move(waiting);
  return TakeReady();
}

std::vector<StoreAnswer> RendezvousStore::StartGeneration(Generation generation) {
  std::vector<StoreAnswer> answers;
  for (const auto& [ticket, waiting] : waiting_) {
    answers.push_back(
        Answer(ticket, Refusal("generation " + std::to_string(generation_.value()) + " is over")));
  }
  waiting_.clear();
  values_.clear();
  generation_ = generation;
  return answers;
}

std::vector<StoreAnswer> RendezvousStore::Expire(TimePoint now) {
  std::vector<StoreAnswer> answers;
  for (auto entry = waiting_.begin(); entry != waiting_.end();) {
    if (now < entry->second.deadline) {
      ++entry;
      continue;
    }
    answers.push_back(Answer(entry->first, Refusal("timed out: not all keys were set")));
    entry = waiting_.erase(entry);
  }
  return answers;
}

void RendezvousStore::Forget(StoreTicket ticket) { waiting_.erase(ticket); }

proto::StoreReply RendezvousStore::Now(const proto::StoreRequest& request) {
  proto::StoreReply reply;
  switch (request.op()) {
    case proto::StoreRequest::SET: return Store(request.key(), request.value());
    case proto::StoreRequest::ADD: {
      std::int64_t number = 0;
      if (const std::string* present = Find(request.key())) {
        const char* end = present->data() + present->size();
        const auto parsed = std::from_chars(present->data(), end, number);
        if (parsed.ec != std::errc() || parsed.ptr != end) {
          return Refusal("the value of '" + request.key() + "' is not a number");
        }
      }
      number += request.amount();
      reply = Store(request.key(), std::to_string(number));
      reply.set_number(number);
      return reply;
    }
    case proto::StoreRequest::CHECK: {
      const std::vector<std::string> keys(request.keys().begin(), request.keys().end());
      reply.set_ok(HasAll(keys));
      return reply;
    }
    case proto::StoreRequest::DELETE_KEY:
      reply.set_ok(values_.erase(request.key()) > 0);
      return reply;
    case proto::StoreRequest::COMPARE_SET: {
      const std::string* present = Find(request.key());
      if (present == nullptr && !request.expected().empty()) return Value(request.expected());
      if (present != nullptr && *present != request.expected()) return Value(*present);
      reply = Store(request.key(), request.value());
      if (reply.ok()) reply.set_value(request.value());
      return reply;
    }
    case proto::StoreRequest::NUM_KEYS:
      reply.set_ok(true);
      reply.set_number(static_cast<std::int64_t>(values_.size()));
      return reply;
    default: return Refusal("unknown operation " + std::to_string(request.op()));
  }
}

bool RendezvousStore::HasAll(const std::vector<std::string>& keys) const {
  return std::all_of(keys.begin(), keys.end(),
                     [this](const std::string& key) { return values_.contains(key); });
}

std::vector<StoreAnswer> RendezvousStore::TakeReady() {
  std::vector<StoreAnswer> answers;
  for (auto entry = waiting_.begin(); entry != waiting_.end();) {
    if (!HasAll(entry->second.keys)) {
      ++entry;
      continue;
    }
    proto::StoreReply reply;
    reply.set_ok(true);
    if (entry->second.wants_value) reply.set_value(*Find(entry->second.keys.front()));
    answers.push_back(Answer(entry->first, std::move(reply)));
    entry = waiting_.erase(entry);
  }
  return answers;
}

std::string* RendezvousStore::Find(const std::string& key) {
  const auto found = values_.find(key);
  return found == values_.end() ? nullptr : &found->second;
}

proto::StoreReply RendezvousStore::Store(const std::string& key, const std::string& value) {
  if (value.size() > kStoreValueBytesMax) {
    return Refusal("a value of " + std::to_string(value.size()) + " bytes; at most " +
                   std::to_string(kStoreValueBytesMax) + " are allowed");
  }
  if (!values_.contains(key) && values_.size() >= kStoreKeysMax) {
    return Refusal("more than " + std::to_string(kStoreKeysMax) + " keys");
  }
  values_[key] = value;
  proto::StoreReply reply;
  reply.set_ok(true);
  return reply;
}

}  // namespace dd2

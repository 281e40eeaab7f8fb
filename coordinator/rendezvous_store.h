#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/ids.h"
#include "proto/control.pb.h"

namespace dd2 {

// Who waits for an answer: a number that the service gives out for each request.
using StoreTicket = Id<struct StoreTicketTag, std::uint64_t>;

struct StoreAnswer {
  StoreTicket ticket;
  proto::StoreReply reply;
};

// The key-value store through which communicators find each other, with the semantics of c10d's
// TCPStore. Keys live in one generation: a new one starts empty, and who still waits in the old one
// is told so.
//
// Pure: a request is answered at once or later, when another request or the clock makes it ready.
// Owned by StoreService; control thread.
//   SET          stores; ok
//   GET          waits for the key; value. ok = false: time-out
//   ADD          decimal counter, 0 when absent; number = new value. ok = false: not a number
//   CHECK        ok = all keys exist now
//   WAIT         ok when all keys exist; false: time-out
//   DELETE_KEY   ok = it existed
//   COMPARE_SET  absent and expected empty, or value == expected: stores, value = the new one;
//                absent otherwise: value = expected; present otherwise: value = the present one
//   NUM_KEYS     number of keys
class RendezvousStore {
 public:
  // Answers that are ready, this request's or others'. A request of another generation than the
  // current one is answered with ok = false and a message.
  std::vector<StoreAnswer> Handle(StoreTicket ticket, Generation generation,
                                  const proto::StoreRequest& request, TimePoint now);
  // Drops all keys and fails all waiting requests.
  std::vector<StoreAnswer> StartGeneration(Generation generation);
  // Fails requests whose time is over.
  std::vector<StoreAnswer> Expire(TimePoint now);
  // The connection that asked is gone.
  void Forget(StoreTicket ticket);

  std::size_t waiting() const { return waiting_.size(); }

 private:
  struct Waiting {
    std::vector<std::string> keys;
    bool wants_value = false;
    TimePoint deadline;
  };
  proto::StoreReply Now(const proto::StoreRequest& request);
  bool HasAll(const std::vector<std::string>& keys) const;
  std::vector<StoreAnswer> TakeReady();
  std::string* Find(const std::string& key);
  proto::StoreReply Store(const std::string& key, const std::string& value);

  Generation generation_;
  std::map<std::string, std::string> values_;
  std::map<StoreTicket, Waiting> waiting_;
};

}  // namespace dd2

#include "coordinator/store_service.h"

#include <utility>

#include "common/limits.h"

namespace dd2 {

StoreService::StoreService(std::string run_id, const Clock& clock)
    : run_id_(std::move(run_id)), clock_(clock) {}

Task<void> StoreService::Serve(std::shared_ptr<Connection> connection) {
  for (;;) {
    const Result<std::string> frame =
        co_await ReadFrame(connection->socket, kFrameBytesMax, kNoLimit);
    if (!frame) break;
    proto::Envelope envelope;
    if (!envelope.ParseFromString(*frame) || !envelope.has_store_request() ||
        envelope.run_id() != run_id_) {
      break;
    }
    const StoreTicket ticket(next_ticket_++);
    asking_[ticket] = connection;
    Deliver(store_.Handle(ticket, Generation(envelope.generation()), envelope.store_request(),
                          clock_.Now()));
  }
  for (auto entry = asking_.begin(); entry != asking_.end();) {
    if (entry->second != connection) {
      ++entry;
      continue;
    }
    store_.Forget(entry->first);
    entry = asking_.erase(entry);
  }
}

void StoreService::StartGeneration(Generation generation) {
  generation_ = generation;
  Deliver(store_.StartGeneration(generation));
}

void StoreService::OnTick() { Deliver(store_.Expire(clock_.Now())); }

void StoreService::Deliver(std::vector<StoreAnswer> answers) {
  for (StoreAnswer& answer : answers) {
    const auto found = asking_.find(answer.ticket);
    if (found == asking_.end()) continue;
    const std::shared_ptr<Connection> connection = found->second;
    asking_.erase(found);
    proto::Envelope envelope;
    envelope.set_run_id(run_id_);
    envelope.set_generation(generation_.value());
    *envelope.mutable_store_reply() = std::move(answer.reply);
    if (!connection->sender.Send(envelope.SerializeAsString())) CloseSocket(connection->socket);
  }
}

}  // namespace dd2

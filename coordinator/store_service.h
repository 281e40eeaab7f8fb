#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/asio.h"
#include "common/clock.h"
#include "coordinator/connection.h"
#include "coordinator/rendezvous_store.h"

namespace dd2 {

// The rendezvous store on its connections: reads requests, sends answers when they are ready.
//
// Owned by CoordinatorLoop, beside the ControlService that hands it connections. Control thread
// only.
class StoreService {
 public:
  StoreService(std::string run_id, const Clock& clock);

  // Serves one connection, whose StoreHello was accepted, until it closes.
  Task<void> Serve(std::shared_ptr<Connection> connection);
  void StartGeneration(Generation generation);
  // Answers requests whose time is over.
  void OnTick();

 private:
  void Deliver(std::vector<StoreAnswer> answers);

  const std::string run_id_;
  const Clock& clock_;
  RendezvousStore store_;
  Generation generation_;
  std::uint64_t next_ticket_ = 1;
  std::map<StoreTicket, std::shared_ptr<Connection>> asking_;
};

}  // namespace dd2

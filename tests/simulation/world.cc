#include "tests/simulation/world.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace dd2::simulation {

void World::After(milliseconds delay, std::function<void()> what) {
  events_.push(Event{.at = now_ + delay, .number = next_++, .what = std::move(what)});
}

bool World::Step(TimePoint end) {
  if (events_.empty() || events_.top().at > end) return false;
  Event event = events_.top();
  events_.pop();
  now_ = event.at;
  event.what();
  return true;
}

void World::Trace(const std::string& line) {
  const auto time = std::chrono::duration_cast<milliseconds>(now_.time_since_epoch()).count();
  trace_.push_back(std::to_string(time) + " ms  " + line);
}

void World::Violate(const std::string& what) {
  if (violation_.empty()) violation_ = what;
  Trace("VIOLATION: " + what);
}

ConnectionId Network::Connect(Client& client) {
  if (!server_->up() || Isolated(client.domain())) return ConnectionId(0);
  const ConnectionId id(next_id_++);
  Pipe& pipe = pipes_[id];
  pipe.client = &client;
  return id;
}

milliseconds Network::Delay(TimePoint& next, const std::string& domain) {
  TimePoint at = world_.now() + world_.Between(0, world_.Chance(5) ? 200 : 5);
  const auto isolated = isolated_until_.find(domain);
  if (isolated != isolated_until_.end()) at = std::max(at, isolated->second);
  next = std::max(next, at);
  return std::chrono::duration_cast<milliseconds>(next - world_.now());
}

void Network::ToServer(ConnectionId connection, const proto::Envelope& envelope) {
  const auto found = pipes_.find(connection);
  if (found == pipes_.end() || !found->second.to_server) return;
  const milliseconds delay = Delay(found->second.server_next, found->second.client->domain());
  world_.After(delay, [this, connection, envelope] {
    if (pipes_.contains(connection) && server_->up()) server_->OnEnvelope(connection, envelope);
  });
}

void Network::ToClient(ConnectionId connection, const proto::Envelope& envelope) {
  const auto found = pipes_.find(connection);
  if (found == pipes_.end() || !found->second.to_client) return;
  const milliseconds delay = Delay(found->second.client_next, found->second.client->domain());
  world_.After(delay, [this, connection, envelope] {
    const auto pipe = pipes_.find(connection);
    if (pipe != pipes_.end()) pipe->second.client->OnEnvelope(envelope);
  });
}

void Network::CloseByClient(ConnectionId connection) {
  const auto found = pipes_.find(connection);
  if (found == pipes_.end() || !found->second.to_server) return;
  found->second.to_server = false;
  const milliseconds delay = Delay(found->second.server_next, found->second.client->domain());
  world_.After(delay, [this, connection] {
    if (pipes_.erase(connection) > 0 && server_->up()) {
      server_->OnCut(connection, "the peer closed the connection");
    }
  });
}

void Network::CloseByServer(ConnectionId connection) {
  const auto found = pipes_.find(connection);
  if (found == pipes_.end() || !found->second.to_client) return;
  found->second.to_client = false;
  const milliseconds delay = Delay(found->second.client_next, found->second.client->domain());
  world_.After(delay, [this, connection] {
    const auto pipe = pipes_.find(connection);
    if (pipe == pipes_.end()) return;
    Client* client = pipe->second.client;
    pipes_.erase(pipe);
    client->OnCut();
  });
}

void Network::Cut(ConnectionId connection) {
  const auto found = pipes_.find(connection);
  if (found == pipes_.end()) return;
  Client* client = found->second.client;
  pipes_.erase(found);
  client->OnCut();
  world_.After(world_.Between(0, 20), [this, connection] {
    if (server_->up()) server_->OnCut(connection, "connection reset");
  });
}

void Network::CutDomain(const std::string& domain) {
  std::vector<ConnectionId> cut;
  for (const auto& [id, pipe] : pipes_) {
    if (pipe.client->domain() == domain) cut.push_back(id);
  }
  for (const ConnectionId id : cut) Cut(id);
}

void Network::CutAll() {
  while (!pipes_.empty()) {
    Client* client = pipes_.begin()->second.client;
    pipes_.erase(pipes_.begin());
    client->OnCut();
  }
}

void Network::Isolate(const std::string& domain, milliseconds time) {
  isolated_until_[domain] = world_.now() + time;
}

bool Network::Isolated(const std::string& domain) const {
  const auto found = isolated_until_.find(domain);
  return found != isolated_until_.end() && found->second > world_.now();
}

}  // namespace dd2::simulation

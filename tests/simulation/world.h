#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <queue>
#include <random>
#include <string>
#include <vector>

#include "common/clock.h"
#include "coordinator/membership.h"
#include "proto/control.pb.h"

namespace dd2::simulation {

using std::chrono::milliseconds;

// Virtual time and chance: everything that happens in a history is an event of this queue, and one
// seed is one history. The trace tells it.
class World {
 public:
  explicit World(std::uint64_t seed) : random_(seed) {}

  TimePoint now() const { return now_; }
  std::int64_t unix_ms() const {
    return 1'700'000'000'000 +
           std::chrono::duration_cast<milliseconds>(now_.time_since_epoch()).count();
  }
  void After(milliseconds delay, std::function<void()> what);
  // Runs the next event; false: there is none before `end`.
  bool Step(TimePoint end);

  std::uint64_t Below(std::uint64_t bound) { return random_() % bound; }
  bool Chance(std::uint64_t percent) { return Below(100) < percent; }
  milliseconds Between(std::int64_t low, std::int64_t high) {
    return milliseconds(
        low + static_cast<std::int64_t>(Below(static_cast<std::uint64_t>(high - low + 1))));
  }

  void Trace(const std::string& line);
  const std::vector<std::string>& trace() const { return trace_; }
  // An invariant does not hold: the history is over.
  void Violate(const std::string& what);
  const std::string& violation() const { return violation_; }

 private:
  struct Event {
    TimePoint at;
    std::uint64_t number = 0;  // events of one moment happen in the order they were made
    std::function<void()> what;
    bool operator<(const Event& other) const {
      return std::tie(other.at, other.number) < std::tie(at, number);
    }
  };
  TimePoint now_;
  std::uint64_t next_ = 0;
  std::priority_queue<Event> events_;
  std::mt19937_64 random_;
  std::vector<std::string> trace_;
  std::string violation_;
};

// One end of a control connection: an agent or a worker.
class Client {
 public:
  virtual ~Client() = default;
  virtual void OnEnvelope(const proto::Envelope& envelope) = 0;
  virtual void OnCut() = 0;
  virtual const std::string& domain() const = 0;
};

// The coordinator's end of all of them.
class Server {
 public:
  virtual ~Server() = default;
  virtual bool up() const = 0;
  virtual void OnEnvelope(ConnectionId from, const proto::Envelope& envelope) = 0;
  virtual void OnCut(ConnectionId connection, const std::string& reason) = 0;
};

// TCP connections between clients and one server: each direction is delayed and stays in order;
// across connections nothing is. A cut loses what is under way; a closed one does not. A domain
// that is cut off hears nothing and is not heard until the network is whole again.
class Network {
 public:
  explicit Network(World& world) : world_(world) {}
  void SetServer(Server& server) { server_ = &server; }

  // Nothing (0): nobody listens, or the domain is cut off.
  ConnectionId Connect(Client& client);
  void ToServer(ConnectionId connection, const proto::Envelope& envelope);
  void ToClient(ConnectionId connection, const proto::Envelope& envelope);
  // One side closes, or its process has died: what it sent before arrives first.
  void CloseByClient(ConnectionId connection);
  void CloseByServer(ConnectionId connection);
  // What is under way is lost, both sides notice.
  void Cut(ConnectionId connection);
  void CutDomain(const std::string& domain);
  void CutAll();
  void Isolate(const std::string& domain, milliseconds time);
  bool Isolated(const std::string& domain) const;

 private:
  struct Pipe {
    Client* client = nullptr;
    bool to_server = true;  // that direction is open
    bool to_client = true;
    TimePoint server_next;  // nothing overtakes
    TimePoint client_next;
  };
  milliseconds Delay(TimePoint& next, const std::string& domain);

  World& world_;
  Server* server_ = nullptr;
  std::uint64_t next_id_ = 1;
  std::map<ConnectionId, Pipe> pipes_;
  std::map<std::string, TimePoint> isolated_until_;
};

}  // namespace dd2::simulation

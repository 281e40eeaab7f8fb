#pragma once

#include <cstdint>
#include <string>

#include "common/result.h"

namespace dd2 {

// What mpirun tells a worker: its place in the failure domain, which is this one mpirun (design 2).
// MPI is used for the start alone; no MPI call is made while training. One object per process, made
// and destroyed on the main thread.
class MpiDomain {
 public:
  // kFailedPrecondition: not started by mpirun. kInternal: MPI refused, with its own words.
  static Result<MpiDomain> Start();
  MpiDomain(MpiDomain&& other) noexcept;
  MpiDomain& operator=(MpiDomain&& other) = delete;
  // Finalises MPI. A worker that failed must not come here: it leaves by _exit, so that mpirun ends
  // the domain at once.
  ~MpiDomain();

  int rank() const { return rank_; }
  int size() const { return size_; }
  // Node-local exchange at start: every process of the domain must have read the same bytes (say,
  // of the configuration on a shared folder). kFailedPrecondition: they differ, with the rank.
  Status AgreeOn(const std::string& what, std::uint64_t digest) const;

 private:
  MpiDomain(int rank, int size) : rank_(rank), size_(size), started_(true) {}
  int rank_;
  int size_;
  bool started_;
};

}  // namespace dd2

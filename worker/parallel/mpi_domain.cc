#include "worker/parallel/mpi_domain.h"

#define OMPI_SKIP_MPICXX 1
#include <mpi.h>

#include <array>
#include <cstdlib>
#include <utility>
#include <vector>

namespace dd2 {
namespace {

Status Check(int code, const char* call) {
  if (code == MPI_SUCCESS) return {};
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  return Error(Code::kInternal, std::string(call) + ": " +
                                    std::string(text.data(), static_cast<std::size_t>(length)));
}

}  // namespace

Result<MpiDomain> MpiDomain::Start() {
  if (std::getenv("OMPI_COMM_WORLD_SIZE") == nullptr) {
    return Error(Code::kFailedPrecondition,
                 "dd2-worker run is started by mpirun, from dd2-agent: use `dd2 run CONFIG`");
  }
  DD2_TRY(Check(MPI_Init(nullptr, nullptr), "MPI_Init"));
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  int rank = 0;
  int size = 0;
  DD2_TRY(Check(MPI_Comm_rank(MPI_COMM_WORLD, &rank), "MPI_Comm_rank"));
  DD2_TRY(Check(MPI_Comm_size(MPI_COMM_WORLD, &size), "MPI_Comm_size"));
  return MpiDomain(rank, size);
}

MpiDomain::MpiDomain(MpiDomain&& other) noexcept
    : rank_(other.rank_), size_(other.size_), started_(std::exchange(other.started_, false)) {}

MpiDomain::~MpiDomain() {
  if (started_) MPI_Finalize();
}

Status MpiDomain::AgreeOn(const std::string& what, std::uint64_t digest) const {
  std::vector<std::uint64_t> all(static_cast<std::size_t>(size_));
  DD2_TRY(
      Check(MPI_Allgather(&digest, 1, MPI_UINT64_T, all.data(), 1, MPI_UINT64_T, MPI_COMM_WORLD),
            "MPI_Allgather"));
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (all[i] != all[0]) {
      return Error(Code::kFailedPrecondition,
                   "process " + std::to_string(i) +
                       " of this domain read "
                       "another " +
                       what + " than process 0: is the run folder the same everywhere?");
    }
  }
  return {};
}

}  // namespace dd2

#pragma once

namespace dd2 {

// The place of a rank in its generation and in its failure domain. All domains have `local_size`
// ranks, which are neighbours in rank order. Optimiser state is cut over the ranks of a domain, and
// every domain holds all of it; gradients are cut over the whole world.
struct RankLayout {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;
  int local_size = 1;

  int domains() const { return world_size / local_size; }
  int domain() const { return rank / local_size; }
  int domain_begin() const { return rank - local_rank; }  // rank of its first member
};

// A world of one domain.
inline RankLayout OneDomain(int rank, int world_size) {
  return {.rank = rank, .world_size = world_size, .local_rank = rank, .local_size = world_size};
}

}  // namespace dd2

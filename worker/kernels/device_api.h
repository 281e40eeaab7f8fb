#pragma once

#include <stddef.h>
#include <stdint.h>

// What libdd2_cuda.so offers: one table of C functions over raw device pointers, so that a program
// that includes no CUDA header can load it (device.h) and tests can put their own functions in its
// place. Pointers named `d_...` are device memory; streams, events and groups are opaque. Every
// function returns a Dd2DeviceCode; the text of the last failure on the calling thread is
// `last_error`. Work on a stream is only begun: its failures show at the next wait.

#define DD2_DEVICE_API_VERSION 5
#define DD2_DEVICE_GROUP_ID_BYTES 128
#define DD2_DEVICE_ADAM_RANGES_MAX 4

// NOLINTBEGIN: C names and shapes
extern "C" {

typedef int32_t Dd2DeviceCode;
enum {
  DD2_DEVICE_OK = 0,
  DD2_DEVICE_BUSY = 1,           // not an error: not finished yet, ask again
  DD2_DEVICE_NO_DRIVER = 2,      // none, or older than this CUDA runtime needs
  DD2_DEVICE_NO_GPU = 3,         // a driver without a GPU
  DD2_DEVICE_OUT_OF_MEMORY = 4,  // on the device, or pinned
  DD2_DEVICE_BAD_ARGUMENT = 5,
  DD2_DEVICE_GROUP_FAILED = 6,  // a peer, the network, or an abort
  DD2_DEVICE_FAILED = 7,        // anything else
};

typedef void* Dd2Stream;  // cudaStream_t; null: the default stream
typedef void* Dd2Event;   // cudaEvent_t
typedef void* Dd2Group;   // ncclComm_t

typedef struct Dd2DeviceFacts {
  char name[256];
  int32_t capability_major, capability_minor;
  int32_t multiprocessors;
  int32_t clock_khz;                                      // of the multiprocessors, highest
  int32_t driver_version, runtime_version, nccl_version;  // as CUDA and NCCL number them
  uint64_t memory_bytes;
  uint8_t id[16];  // whatever number a process knows it by
} Dd2DeviceFacts;

// Type of activations and logits; everything else is fp32.
enum { DD2_DEVICE_FP32 = 0, DD2_DEVICE_BF16 = 1 };

// The teacher's posterior mean (worker/distill/score_kernel.h), rows i of N = draws * logp_rows use
// logits row i % logp_rows, which is read from memory once for all draws (32 draws at most at a
// time). channels <= 64. Sums are fp32 in an order that depends on `codes` and `channels` only.
typedef struct Dd2ScoreProblem {
  int64_t draws, logp_rows, codes, channels;
  const float* d_codebook;  // [codes, channels]
  const void* d_logp;       // [logp_rows, codes] of logp_type; -inf: removed
  int32_t logp_type;
  const float* d_t;  // [N] in (0, 1]
  const float* d_x;  // [N, channels]
  const float* d_u;  // [N, channels]; null: no product wanted
  float* d_mu;       // [N, channels]
  float* d_jtu;      // [N, channels] = J^T u; null with d_u
} Dd2ScoreProblem;

// As row_kernels.h. What matrix products give and take is of `type` (y and dy, branch and d
// branch); the residual stream (x, out and their gradients), modulation, statistics (mean, 1 /
// deviation), affine parts and biases are fp32.
typedef struct Dd2RowShape {
  int64_t rows, width;
  int32_t type;
} Dd2RowShape;

// Rows of shift, scale and gate: row i of `rows` has the one at i / repeats * stride, and its
// gradient at i / repeats * gradient_stride. In the MLP head every row has its own (repeats = 1),
// in VAR's blocks the tokens of a sequence share one: its gradient is their sum in a fixed tree,
// which does not depend on the sequences beside it. rows / repeats <= 65535 where repeats > 1.
typedef struct Dd2ModulationRows {
  int64_t repeats, stride, gradient_stride;
} Dd2ModulationRows;

typedef struct Dd2ModulatedNorm {
  Dd2RowShape shape;
  Dd2ModulationRows modulation;
  const float* d_x;
  const float* d_weight;  // [width]; null: 1
  const float* d_bias;    // [width]; null: 0
  float epsilon;
  const float *d_shift, *d_scale;            // modulation rows
  const float *d_shift_bias, *d_scale_bias;  // [width], added to them; null: 0
  float* d_stats;                            // [rows, 2]; written forwards, read backwards
  void* d_y;                                 // forwards
  // Backwards:
  const void* d_dy;
  const float* d_residual;     // added to dx; null: nothing
  float* d_dx;                 // may be d_residual, or d_dy of fp32
  float *d_dshift, *d_dscale;  // rows of gradients; both null: nobody asks
  float *d_dweight, *d_dbias;  // added to, rows in a fixed tree; null: nobody asks
} Dd2ModulatedNorm;

typedef struct Dd2GatedResidual {
  Dd2RowShape shape;
  Dd2ModulationRows modulation;
  const float* d_x;
  const void* d_branch;
  const float* d_branch_bias;  // [width]; null: 0
  const float* d_gate;         // modulation rows
  const float* d_gate_bias;    // [width], added to them; null: 0
  float* d_out;                // forwards
  // Backwards (d x is d out itself):
  const float* d_dout;
  void* d_dbranch;
  float* d_dgate;  // rows of gradients; null: nobody asks
} Dd2GatedResidual;

// Queries and keys of length 1, the queries times their head's temperature: rows are tokens, width
// is a head's; heads * rows <= 2^31. `type` is that of all but the temperature.
typedef struct Dd2UnitLength {
  Dd2RowShape shape;
  int64_t heads;
  const void* d_qkv;           // [rows, 3, heads, width]: queries, keys, values
  const float* d_temperature;  // [heads]
  void *d_q, *d_k;             // [rows, heads, width]; forwards
  // Backwards:
  const void *d_dq, *d_dk;
  void* d_dqkv;           // [rows, 3, heads, width]: its queries and keys
  float* d_dtemperature;  // [rows, heads], for the caller to add up; null: nobody asks
} Dd2UnitLength;

// d_out[j] += sum of column j of d_x [rows, stride], rows in a fixed tree: gradients of biases.
typedef struct Dd2ColumnSums {
  Dd2RowShape shape;
  const void* d_x;
  int64_t stride;
  float* d_out;  // [width]
} Dd2ColumnSums;

// AdamFactors of worker/parallel/update_kernels.h for elements [begin, end).
typedef struct Dd2AdamRange {
  int64_t begin, end;
  float gradient_scale, beta1, beta2, one_minus_beta1, one_minus_beta2;
  float step_size, root_bias_correction2, epsilon, ema_decay, one_minus_ema_decay;
} Dd2AdamRange;

// One pass over a slice of the flat buffer, with the bits of the CPU's AdamAndEma.
typedef struct Dd2AdamStep {
  int32_t ranges;
  Dd2AdamRange range[DD2_DEVICE_ADAM_RANGES_MAX];  // do not overlap
  const float* d_gradient;
  float *d_parameter, *d_m, *d_v;
  float* d_ema;  // null: left alone
} Dd2AdamStep;

// d_out = factor * d_in, in chunks of 4096, and the sum of squares of each chunk of d_out, with the
// bits of the CPU's ScaleAndSquareSum (worker/parallel/update_kernels.h).
typedef struct Dd2ChunkSquares {
  int64_t chunks;
  const float* d_in;
  float factor;
  float* d_out;       // may be d_in
  double* d_squares;  // [chunks]
} Dd2ChunkSquares;

// Numbers of a run's random field (common/rng.h): those of samples first_sample, first_sample + 1,
// ... at one position, each of which draws draws * width of them; d_out [draws, samples, width].
// Uniforms have the CPU's bits, normals nearly all of them (a GPU's logarithm and sine may differ
// in their last bit, in double precision).
typedef struct Dd2RandomField {
  uint64_t seed;
  uint32_t phase, use, update, first_sample;
  int32_t normal;                 // 0: uniform in [0, 1)
  int64_t draws, samples, width;  // draws * width < 2^34
  float* d_out;
} Dd2RandomField;

typedef struct Dd2DeviceApi {
  uint32_t version;    // DD2_DEVICE_API_VERSION; read it before anything but `size`
  uint32_t size;       // of this struct
  int32_t torch_type;  // c10::DeviceType of tensors in its memory
  const char* (*last_error)(void);

  Dd2DeviceCode (*count)(int32_t* devices);
  Dd2DeviceCode (*use)(int32_t device);  // of the calling thread from now on
  Dd2DeviceCode (*facts)(int32_t device, Dd2DeviceFacts* facts);

  Dd2DeviceCode (*allocate)(size_t bytes, void** d_memory);
  Dd2DeviceCode (*release)(void* d_memory);
  Dd2DeviceCode (*allocate_pinned)(size_t bytes, void** memory);
  Dd2DeviceCode (*release_pinned)(void* memory);
  // Memory of the host that is there already, until `unpin`.
  Dd2DeviceCode (*pin)(void* memory, size_t bytes);
  Dd2DeviceCode (*unpin)(void* memory);
  // Either side may be host or device memory; really asynchronous where host memory is pinned.
  Dd2DeviceCode (*copy)(void* to, const void* from, size_t bytes, Dd2Stream stream);

  Dd2DeviceCode (*make_stream)(Dd2Stream* stream);
  Dd2DeviceCode (*end_stream)(Dd2Stream stream);
  Dd2DeviceCode (*wait_stream)(Dd2Stream stream);  // blocks the host
  Dd2DeviceCode (*make_event)(int32_t timed, Dd2Event* event);
  Dd2DeviceCode (*end_event)(Dd2Event event);
  Dd2DeviceCode (*record)(Dd2Event event, Dd2Stream stream);
  Dd2DeviceCode (*passed)(Dd2Event event);  // OK or BUSY
  Dd2DeviceCode (*milliseconds)(Dd2Event from, Dd2Event to, float* milliseconds);

  Dd2DeviceCode (*score)(const Dd2ScoreProblem* problem, Dd2Stream stream);
  Dd2DeviceCode (*modulated_norm)(const Dd2ModulatedNorm* norm, Dd2Stream stream);
  Dd2DeviceCode (*modulated_norm_backward)(const Dd2ModulatedNorm* norm, Dd2Stream stream);
  Dd2DeviceCode (*gated_residual)(const Dd2GatedResidual* gated, Dd2Stream stream);
  Dd2DeviceCode (*gated_residual_backward)(const Dd2GatedResidual* gated, Dd2Stream stream);
  Dd2DeviceCode (*unit_length)(const Dd2UnitLength* unit, Dd2Stream stream);
  Dd2DeviceCode (*unit_length_backward)(const Dd2UnitLength* unit, Dd2Stream stream);
  Dd2DeviceCode (*column_sums)(const Dd2ColumnSums* sums, Dd2Stream stream);
  Dd2DeviceCode (*adam)(const Dd2AdamStep* step, Dd2Stream stream);
  Dd2DeviceCode (*chunk_squares)(const Dd2ChunkSquares* squares, Dd2Stream stream);
  Dd2DeviceCode (*random)(const Dd2RandomField* field, Dd2Stream stream);

  // Groups (NCCL); null: this library has none (one for tests). All calls return at once, also with
  // BUSY: then `group_state` says when the group can be used again. No two threads at once on one
  // group. Counts are of floats, per rank.
  Dd2DeviceCode (*group_id)(uint8_t id[DD2_DEVICE_GROUP_ID_BYTES]);
  Dd2DeviceCode (*begin_group)(const uint8_t id[DD2_DEVICE_GROUP_ID_BYTES], int32_t world_size,
                               int32_t rank, Dd2Group* group);
  Dd2DeviceCode (*group_state)(Dd2Group group);  // OK, BUSY, or what went wrong
  Dd2DeviceCode (*abort_group)(Dd2Group group);  // ends it, and what it has on any stream
  Dd2DeviceCode (*all_gather)(Dd2Group group, const float* d_send, float* d_receive, int64_t count,
                              Dd2Stream stream);
  // send_counts[r] floats go to rank r (one behind the other), receive_counts[r] come from it.
  Dd2DeviceCode (*all_to_all)(Dd2Group group, int32_t world_size, const float* d_send,
                              const int64_t* send_counts, float* d_receive,
                              const int64_t* receive_counts, Dd2Stream stream);
} Dd2DeviceApi;

// The one symbol of libdd2_cuda.so. Needs no driver.
const Dd2DeviceApi* dd2_device_api(void);

}  // extern "C"
// NOLINTEND

#include "worker/parallel/tensor_exchange.h"

#include "common/check.h"

namespace dd2 {
namespace {

std::span<const float> Floats(const at::Tensor& tensor) {
  return {tensor.const_data_ptr<float>(), static_cast<std::size_t>(tensor.numel())};
}

std::span<float> WritableFloats(const at::Tensor& tensor) {
  return {tensor.data_ptr<float>(), static_cast<std::size_t>(tensor.numel())};
}

}  // namespace

Status AllToAll(Collectives& collectives, const at::Tensor& send,
                std::span<const std::int64_t> send_counts, const at::Tensor& receive,
                std::span<const std::int64_t> receive_counts) {
  DD2_CHECK(send.is_contiguous() && receive.is_contiguous());
  if (receive.is_cpu()) {
    return collectives.AllToAll(Floats(send), send_counts, WritableFloats(receive), receive_counts);
  }
  if (DeviceExchange* devices = collectives.devices()) {
    return devices->AllToAll(send.const_data_ptr<float>(), send_counts, receive.data_ptr<float>(),
                             receive_counts);
  }
  const at::Tensor host = at::empty(receive.sizes(), at::kFloat);
  DD2_TRY(
      collectives.AllToAll(Floats(send.cpu()), send_counts, WritableFloats(host), receive_counts));
  receive.copy_(host);
  return {};
}

Status AllGather(Collectives& collectives, const at::Tensor& mine, const at::Tensor& all) {
  DD2_CHECK(mine.is_contiguous() && all.is_contiguous());
  if (all.is_cpu()) {
    return collectives.AllGather(std::as_bytes(Floats(mine)),
                                 std::as_writable_bytes(WritableFloats(all)));
  }
  if (DeviceExchange* devices = collectives.devices()) {
    return devices->AllGather(mine.const_data_ptr<float>(), all.data_ptr<float>(), mine.numel());
  }
  const at::Tensor host = at::empty(all.sizes(), at::kFloat);
  DD2_TRY(collectives.AllGather(std::as_bytes(Floats(mine.cpu())),
                                std::as_writable_bytes(WritableFloats(host))));
  all.copy_(host);
  return {};
}

}  // namespace dd2

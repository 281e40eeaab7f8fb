#pragma once

#include <cstddef>

namespace dd2::far_device {

// There are $DD2_FAR_DEVICES (8) of $DD2_FAR_MEMORY_MIB (65,536) each. A process computes on one.
int DeviceCount();
void UseDevice(int number);
int DeviceInUse();
std::size_t MemoryBytes();

// Its memory: addresses that the host cannot read or write (a slip ends the process), each of
// which stands for one in another region. Any thread.
void* Allocate(std::size_t bytes);  // null: none left
void Release(void* memory);
bool IsFar(const void* memory);
// Where the host finds what `memory` stands for; memory of the host is itself.
template <class T>
T* Near(T* memory);

}  // namespace dd2::far_device

// Implementation of the template.
namespace dd2::far_device {
const void* NearAddress(const void* memory);
template <class T>
T* Near(T* memory) {
  return static_cast<T*>(const_cast<void*>(NearAddress(memory)));
}
}  // namespace dd2::far_device

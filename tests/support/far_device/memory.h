#pragma once

#include <cstddef>

namespace dd2::far_device {

// The memory of the far device: addresses that the host cannot read or write (a slip ends the
// process), each of which stands for one in another region. Any thread.
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

#include "common/local_address.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>
#include <string_view>

#include "common/process.h"

namespace dd2 {
namespace {

using Bytes = std::array<unsigned char, 16>;

// How many bytes of `bytes` the address has: 4, 16, or 0 when it is none.
std::size_t ParseAddress(const std::string& text, Bytes& bytes) {
  if (inet_pton(AF_INET, text.c_str(), bytes.data()) == 1) return 4;
  if (inet_pton(AF_INET6, text.c_str(), bytes.data()) == 1) return 16;
  return 0;
}

struct Network {
  Bytes base{};
  std::size_t size = 0;  // bytes of an address
  int bits = 0;
};

std::optional<Network> ParseNetwork(const std::string& text) {
  const std::size_t slash = text.find('/');
  if (slash == std::string::npos) return std::nullopt;
  Network network;
  network.size = ParseAddress(text.substr(0, slash), network.base);
  const char* const end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data() + slash + 1, end, network.bits);
  if (network.size == 0 || parsed.ec != std::errc() || parsed.ptr != end || network.bits < 0 ||
      network.bits > static_cast<int>(network.size) * 8) {
    return std::nullopt;
  }
  return network;
}

bool IsInside(const std::string& address, const Network& network) {
  Bytes bytes{};
  if (ParseAddress(address, bytes) != network.size) return false;
  for (int bit = 0; bit < network.bits; ++bit) {
    const auto byte = static_cast<std::size_t>(bit / 8);
    const unsigned mask = 0x80u >> (bit % 8);
    if (((bytes[byte] ^ network.base[byte]) & mask) != 0) return false;
  }
  return true;
}

// Other machines do not reach what is behind it.
bool IsForContainers(std::string_view interface) {
  static constexpr std::array kPrefixes = {"docker",  "br-",    "veth", "virbr", "cni",
                                           "flannel", "podman", "lxc",  "cali",  "kube"};
  return std::any_of(kPrefixes.begin(), kPrefixes.end(),
                     [interface](const char* prefix) { return interface.starts_with(prefix); });
}

Error NoAddress(const std::string& problem, const std::vector<LocalAddress>& addresses) {
  std::string present;
  for (const LocalAddress& one : addresses) {
    if (one.usable) present += (present.empty() ? "" : ", ") + one.interface + " " + one.address;
  }
  return Error(Code::kFailedPrecondition,
               "api.host: " + problem + ". This machine has " +
                   (present.empty() ? "none but loopback" : present) +
                   "; say an address, an interface or a network as 10.1.0.0/16");
}

Result<std::string> ByRule(const std::vector<LocalAddress>& addresses, const AddressHints& hints) {
  std::vector<LocalAddress> usable;
  for (const bool v6 : {false, true}) {
    for (const LocalAddress& one : addresses) {
      if (one.usable && one.v6 == v6 && !IsForContainers(one.interface)) usable.push_back(one);
    }
    if (!usable.empty()) break;
  }
  if (usable.empty()) {
    return NoAddress("no address that other machines could reach", addresses);
  }
  for (const std::string& named : hints.of_host_name) {
    for (const LocalAddress& one : usable) {
      if (one.address == named) return named;
    }
  }
  for (const LocalAddress& one : usable) {
    if (one.interface == hints.default_route) return one.address;
  }
  return usable.front().address;
}

std::string TextOf(const sockaddr* address) {
  char text[INET6_ADDRSTRLEN] = "";
  const void* const bytes =
      address->sa_family == AF_INET
          ? static_cast<const void*>(&reinterpret_cast<const sockaddr_in*>(address)->sin_addr)
          : static_cast<const void*>(&reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr);
  inet_ntop(address->sa_family, bytes, text, sizeof text);
  return text;
}

}  // namespace

Result<std::string> ChooseAddress(const std::string& wanted,
                                  const std::vector<LocalAddress>& addresses,
                                  const AddressHints& hints) {
  if (wanted == "auto") return ByRule(addresses, hints);
  Bytes bytes{};
  if (ParseAddress(wanted, bytes) != 0) return wanted;
  const std::optional<Network> network = ParseNetwork(wanted);
  for (const bool v6 : {false, true}) {
    for (const LocalAddress& one : addresses) {
      const bool meant = network ? IsInside(one.address, *network) : one.interface == wanted;
      if (meant && one.v6 == v6) return one.address;
    }
  }
  return NoAddress("'" + wanted +
                       "' is neither an address nor an interface or network of this "
                       "machine",
                   addresses);
}

std::vector<LocalAddress> LocalAddresses() {
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return {};
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(list, freeifaddrs);
  std::vector<LocalAddress> addresses;
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr) continue;
    const int family = entry->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    LocalAddress one;
    one.interface = entry->ifa_name;
    one.address = TextOf(entry->ifa_addr);
    one.v6 = family == AF_INET6;
    const bool up = (entry->ifa_flags & IFF_UP) != 0 && (entry->ifa_flags & IFF_RUNNING) != 0;
    const bool link_only = one.address.starts_with("169.254.") || one.address.starts_with("fe80:");
    one.usable = up && !link_only && (entry->ifa_flags & IFF_LOOPBACK) == 0;
    addresses.push_back(std::move(one));
  }
  return addresses;
}

AddressHints FindAddressHints() {
  AddressHints hints;
  addrinfo wanted{};
  wanted.ai_family = AF_UNSPEC;
  wanted.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  if (getaddrinfo(HostName().c_str(), nullptr, &wanted, &list) == 0) {
    const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(list, freeaddrinfo);
    for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
      hints.of_host_name.push_back(TextOf(entry->ai_addr));
    }
  }
  std::ifstream routes("/proc/net/route");
  std::string line;
  while (hints.default_route.empty() && std::getline(routes, line)) {
    std::istringstream words(line);
    std::string interface;
    std::string destination;
    words >> interface >> destination;
    if (destination == "00000000") hints.default_route = interface;
  }
  return hints;
}

Result<std::string> ResolveListenAddress(const std::string& wanted) {
  Bytes bytes{};
  if (ParseAddress(wanted, bytes) != 0) return wanted;
  return ChooseAddress(wanted, LocalAddresses(),
                       wanted == "auto" ? FindAddressHints() : AddressHints());
}

bool IsLoopback(const std::string& address) {
  return address.starts_with("127.") || address == "::1";
}

}  // namespace dd2

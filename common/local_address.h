#pragma once

#include <string>
#include <vector>

#include "common/result.h"

namespace dd2 {

// Where a process listens: never on all interfaces by accident.

// One address of this machine.
struct LocalAddress {
  std::string interface;  // "ib0"
  std::string address;    // without a zone
  bool v6 = false;
  bool usable = false;  // up, and neither loopback nor of one link only (169.254..., fe80...)
};

// What else the rule looks at.
struct AddressHints {
  std::vector<std::string> of_host_name;  // addresses that the machine's own name stands for
  std::string default_route;              // interface; empty: none
};

// The address that `wanted` means:
//   an address       itself, whoever has it
//   an interface     "ib0": its address
//   a network        "10.1.0.0/16": the address inside of it
//   "auto"           the one that other machines reach this one under, by rule: of the usable ones,
//                    and not of a bridge for containers, that of the host's name; else that of the
//                    default route's interface; else the first. IPv6 where there is no IPv4.
// kFailedPrecondition: there is none, with those that there are. Pure.
Result<std::string> ChooseAddress(const std::string& wanted,
                                  const std::vector<LocalAddress>& addresses,
                                  const AddressHints& hints);

std::vector<LocalAddress> LocalAddresses();
AddressHints FindAddressHints();

// ChooseAddress with what this machine has. May ask a name server.
Result<std::string> ResolveListenAddress(const std::string& wanted);

// 127.0.0.0/8 or ::1.
bool IsLoopback(const std::string& address);

}  // namespace dd2

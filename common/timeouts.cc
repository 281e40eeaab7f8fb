#include "common/timeouts.h"

#include <charconv>

namespace dd2 {

namespace {

using std::chrono::milliseconds;

// One side of an inequality: a setting of Timeouts, or a constant with a name for messages.
struct Side {
  const char* name;
  milliseconds Timeouts::*setting;  // null: `constant`
  milliseconds constant;

  milliseconds In(const Timeouts& timeouts) const {
    return setting == nullptr ? constant : timeouts.*setting;
  }
};

#define DD2_SETTING(name)      \
  {                            \
#name, &Timeouts::name, {} \
  }

// `factor` times `less` is at most `more`, or below it.
struct Rule {
  Side less;
  int factor;
  bool may_be_equal;
  Side more;
  const char* reason;
};

constexpr Side kDiskStall{"the longest wait of a rank for its disk", nullptr, timeouts::kDiskStall};

constexpr Rule kRules[] = {
    {DD2_SETTING(heartbeat_interval), 5, true, DD2_SETTING(heartbeat_expiry),
     "a few late beats are not a lost peer"},
    {DD2_SETTING(heartbeat_expiry), 1, false, DD2_SETTING(collective),
     "the coordinator notices a silent rank before the others give up"},
    {DD2_SETTING(heartbeat_expiry), 1, false, DD2_SETTING(regroup),
     "a silent rank is noticed before the others give up"},
    {DD2_SETTING(stall), 1, false, DD2_SETTING(collective),
     "the coordinator removes a hanging rank before the others give up"},
    {kDiskStall, 1, false, DD2_SETTING(collective),
     "a rank may wait for its disk while the others wait for it"},
    {kDiskStall, 1, false, DD2_SETTING(unwind),
     "a rank that waits for its disk must end that first"},
    {DD2_SETTING(collective), 1, false, DD2_SETTING(stop),
     "a stop may have to wait for a whole collective"},
    {DD2_SETTING(checkpoint_parts), 1, false, DD2_SETTING(stop),
     "a stop may have to wait for a whole checkpoint"},
    {DD2_SETTING(regroup), 1, false, DD2_SETTING(coordinator_away),
     "a rank that waits to be called may be waiting for a coordinator that is away"},
    {DD2_SETTING(reattach), 1, false, DD2_SETTING(coordinator_away),
     "workers still try when a restarted coordinator waits for them"},
    {DD2_SETTING(restart_first), 1, true, DD2_SETTING(restart_last),
     "the first of growing waits is the shortest"},
    {{"the time between two tries to reach the coordinator", nullptr, timeouts::kReconnect},
     5,
     true,
     DD2_SETTING(reattach),
     "workers have time for a few tries"},
    {{"the time after which a failed collective is a broken generation", nullptr,
      timeouts::kTrouble},
     1,
     false,
     DD2_SETTING(regroup),
     "ranks whose collective failed wait to be called"},
    {{"the time in which ranks meet", nullptr, timeouts::kConnectRanks},
     1,
     false,
     DD2_SETTING(unwind),
     "a rank that waits for another one to meet it must end that first"},
    {{"the time for a hello", nullptr, timeouts::kHello},
     1,
     false,
     DD2_SETTING(workers_join),
     "workers that start say hello"},
};

#undef DD2_SETTING

constexpr bool Holds(const Rule& rule, milliseconds less, milliseconds more) {
  return rule.may_be_equal ? less * rule.factor <= more : less * rule.factor < more;
}

std::string Describe(const Side& side, const Timeouts& timeouts) {
  return (side.setting == nullptr ? std::string(side.name) : "timeouts." + std::string(side.name)) +
         " (" + FormatSeconds(side.In(timeouts)) + ")";
}

}  // namespace

std::string FormatSeconds(milliseconds time) {
  char text[32];
  const double number = static_cast<double>(time.count()) / 1000.0;
  const auto end = std::to_chars(text, text + sizeof(text), number);
  return std::string(text, end.ptr) + " s";
}

std::vector<TimeoutConflict> CheckTimeouts(const Timeouts& timeouts) {
  std::vector<TimeoutConflict> conflicts;
  for (const Rule& rule : kRules) {
    if (Holds(rule, rule.less.In(timeouts), rule.more.In(timeouts))) continue;
    TimeoutConflict conflict;
    const bool first = rule.less.setting != nullptr;
    conflict.setting = first ? rule.less.name : rule.more.name;
    if (first) conflict.other = rule.more.name;
    const std::string factor =
        rule.factor == 1 ? std::string() : std::to_string(rule.factor) + " times ";
    conflict.problem = factor + Describe(rule.less, timeouts) + " must be " +
                       (rule.may_be_equal ? "at most " : "less than ") +
                       Describe(rule.more, timeouts) + ": " + rule.reason;
    conflicts.push_back(std::move(conflict));
  }
  return conflicts;
}

}  // namespace dd2

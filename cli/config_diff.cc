#include "cli/config_diff.h"

#include <map>

#include "common/config_tree.h"

namespace dd2 {
namespace {

using Leaves = std::vector<std::pair<std::string, std::string>>;

void Flatten(const ConfigNode& node, const std::string& path, Leaves& leaves) {
  switch (node.kind) {
    case ConfigNode::Kind::kNull: leaves.emplace_back(path, "null"); return;
    case ConfigNode::Kind::kScalar: leaves.emplace_back(path, node.scalar); return;
    case ConfigNode::Kind::kList:
      for (std::size_t i = 0; i < node.list.size(); ++i) {
        Flatten(node.list[i], path + "." + std::to_string(i), leaves);
      }
      return;
    case ConfigNode::Kind::kMap:
      for (const auto& [key, value] : node.entries) {
        Flatten(value, path.empty() ? key : path + "." + key, leaves);
      }
      return;
  }
}

}  // namespace

Result<std::vector<ConfigDifference>> DiffConfigs(std::string_view before, std::string_view after) {
  const std::string absent = "(absent)";
  DD2_TRY_ASSIGN(const auto before_tree, ParseConfigTree(before, "stored configuration"));
  DD2_TRY_ASSIGN(const auto after_tree, ParseConfigTree(after, "new configuration"));
  Leaves before_leaves;
  Leaves after_leaves;
  Flatten(before_tree, "", before_leaves);
  Flatten(after_tree, "", after_leaves);
  const std::map<std::string, std::string> olds(before_leaves.begin(), before_leaves.end());
  const std::map<std::string, std::string> news(after_leaves.begin(), after_leaves.end());
  std::vector<ConfigDifference> differences;
  for (const auto& [key, value] : before_leaves) {
    const auto found = news.find(key);
    const std::string& other = found == news.end() ? absent : found->second;
    if (other != value) differences.push_back({key, value, other});
  }
  for (const auto& [key, value] : after_leaves) {
    if (!olds.contains(key)) differences.push_back({key, absent, value});
  }
  return differences;
}

std::string DescribeDifferences(const std::vector<ConfigDifference>& differences,
                                std::string_view indent) {
  std::string out;
  for (const auto& difference : differences) {
    if (!out.empty()) out += '\n';
    out += std::string(indent) + difference.key + ": " + difference.before + " in the run, " +
           difference.after + " now";
  }
  return out;
}

}  // namespace dd2

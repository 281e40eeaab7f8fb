#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "common/result.h"
#include "common/teacher_config.h"

namespace dd2 {

// The settings of `dd2 teacher train`, read by the same rules and with the same errors as those of
// a run (common/config.h).
Result<TeacherTrainConfig> LoadTeacherTrainConfig(const std::filesystem::path& path,
                                                  const std::vector<std::string>& overrides = {});
Result<TeacherTrainConfig> ParseTeacherTrainConfig(std::string_view yaml, const std::string& label,
                                                   const std::filesystem::path& folder,
                                                   const std::vector<std::string>& overrides = {});

// The effective settings as YAML that loads back to the same.
std::string DumpTeacherTrainConfig(const TeacherTrainConfig& config);

// Every setting as a Markdown table.
std::string DescribeTeacherSettings();

}  // namespace dd2

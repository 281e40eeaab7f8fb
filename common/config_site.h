#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "common/result.h"
#include "common/site_config.h"

namespace dd2 {

// The settings of a Slurm site, read by the same rules and with the same errors as those of a run
// (common/config.h).
Result<SiteConfig> LoadSiteConfig(const std::filesystem::path& path);
Result<SiteConfig> ParseSiteConfig(std::string_view yaml, const std::string& label,
                                   const std::filesystem::path& folder);

// Every setting as a Markdown table.
std::string DescribeSiteSettings();

}  // namespace dd2

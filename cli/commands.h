#pragma once

#include <CLI/App.hpp>
#include <filesystem>
#include <string>
#include <vector>

#include "common/result.h"

namespace dd2 {

// The groups of sub-commands of `dd2`, one source file each. Add...Command declares the options and
// what happens after parsing; what happens sets `exit_code` (common/exit_codes.h). `app` and
// `exit_code` outlive the parsing. Main thread only.
// `words`: the command line as typed.
void AddRunCommand(CLI::App& app, const std::vector<std::string>& words, int& exit_code);
void AddStatusCommands(CLI::App& app, int& exit_code);      // status, watch
void AddControlCommands(CLI::App& app, int& exit_code);     // pause, resume, cancel
void AddCheckpointCommands(CLI::App& app, int& exit_code);  // checkpoint [ls|verify|digest|...]
// checkpoint show|reshard|export|prune; `app` is the command `checkpoint`.
void AddCheckpointTools(CLI::App& app, int& exit_code);
void AddConfigCommands(CLI::App& app, int& exit_code);  // config check|show
void AddCacheCommands(CLI::App& app, int& exit_code);   // cache stats
void AddWorkerCommands(CLI::App& app, int& exit_code);  // teacher, sample, eval, export
// teacher import|inspect; `app` is the command `teacher`.
void AddTeacherTools(CLI::App& app, int& exit_code);
void AddAgentCommands(CLI::App& app, int& exit_code);     // agent join, drain
void AddIncidentsCommand(CLI::App& app, int& exit_code);  // incidents
void AddDoctorCommand(CLI::App& app, int& exit_code);     // doctor
void AddPlanCommand(CLI::App& app, int& exit_code);       // plan
void AddLogsCommand(CLI::App& app, int& exit_code);       // logs
void AddReportCommands(CLI::App& app, int& exit_code);    // report, version
void AddSubmitCommand(CLI::App& app, const std::vector<std::string>& words, int& exit_code);

// Whether `word` is neither an option nor a command of `app`; if so, says it and names the nearest.
bool IsUnknownCommand(const CLI::App& app, const std::string& word);

// Prints "dd2: <message>" to standard error; returns the exit code that belongs to the error.
int Fail(const Error& error);

// Asks the coordinator of `run` to do `action` (pause, resume, checkpoint, cancel) and prints its
// answer. Returns the exit code.
int SendControl(const std::filesystem::path& run, const std::string& action, bool json);

// One of our own programs beside the running dd2. kNotFound with the path and what to do.
Result<std::filesystem::path> FindSibling(const std::string& name);

}  // namespace dd2

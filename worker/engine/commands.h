#pragma once

#include <string>
#include <vector>

namespace dd2 {

// What `dd2 sample`, `dd2 eval` and `dd2 export` hand to dd2-worker. `arguments` are the words
// after the command's name; `--help` prints them. Messages go to standard error, answers to
// standard output; the return value is the exit code (common/exit_codes.h). All that compute
// networks take --device cpu|cuda (command_frame.h).

// --model PATH --out FILE.png|FILE.npz|FILE.safetensors [--classes all|0,1,2] [--count N] ...
int SampleCommand(const std::vector<std::string>& arguments);
// --model PATH [--teacher DIR] [--dataset DIR] [--samples N] [--seed S] [--json], or without
// --model: the teacher itself [--cfg-scale W], or --images: adm_command.h
int EvalCommand(const std::vector<std::string>& arguments);
// RUN [--out DIR] [--checkpoint ID]
int ExportCommand(const std::vector<std::string>& arguments);
// DIR [--tokens FILE] --out DIR [--steps N] ...
int TeacherAdaptCommand(const std::vector<std::string>& arguments);
// DIR --tokens FILE --out FILE [--cfg X]
int TeacherLogitsCommand(const std::vector<std::string>& arguments);
// DIR --tokens FILE --out FILE
int TeacherDecodeCommand(const std::vector<std::string>& arguments);
// DIR --image FILE --out FILE
int TeacherEncodeCommand(const std::vector<std::string>& arguments);

}  // namespace dd2

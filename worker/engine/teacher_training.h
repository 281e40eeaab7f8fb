#pragma once

#include <string>

#include "common/result.h"
#include "common/teacher_config.h"
#include "worker/engine/teacher_stage.h"

namespace dd2 {

struct TeacherTrainOptions {
  std::string command;  // for the card; empty: "dd2 teacher train configs/teachers/<name>.yaml"
  ReportLine report;    // empty: lines to standard output
};

// Trains classifier, tokenizer and AR teacher one after another and writes config.output/
// {classifier,tokenizer,teacher}.safetensors and card.json (settings, versions, measured quality).
// The same seed, shards and settings give the same weights, whatever `threads` is.
//
// Interrupted, it goes on from the newest state under config.output/.training; finished, it removes
// that folder. kInvalidArgument: impossible settings; kNotFound: no data set; kUnavailable:
// somebody else trains into the same folder; kFailedPrecondition: a state of other settings is
// there.
Status TrainTeacher(const TeacherTrainConfig& config, const TeacherTrainOptions& options = {});

}  // namespace dd2

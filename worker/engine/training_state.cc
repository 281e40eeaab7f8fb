#include "worker/engine/training_state.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "common/json.h"
#include "worker/kernels/torch_device.h"

namespace dd2 {
namespace {

// One tensor kind of one network: where its elements [begin, begin + size) of the flat buffer are.
struct Group {
  std::string name;
  const ParamLayout* layout = nullptr;
  at::Tensor data;         // fp32, contiguous
  std::int64_t begin = 0;  // flat position of data[0]
};

std::vector<Group> GroupsOf(const TrainingState& state) {
  std::vector<Group> groups;
  const std::array<std::pair<const char*, const NetworkState*>, 2> networks{
      {{"generator", &state.generator}, {"guidance", &state.guidance}}};
  for (const auto& [name, network] : networks) {
    const ParamLayout* layout = &network->params.layout();
    const std::string prefix = name;
    groups.push_back({prefix + ".param", layout, network->params.flat(), 0});
    groups.push_back({prefix + ".adam_m", layout, network->adam_m, network->begin});
    groups.push_back({prefix + ".adam_v", layout, network->adam_v, network->begin});
    groups.push_back({prefix + ".ema", layout, network->ema, network->begin});
  }
  return groups;
}

// Calls visit(spec, first, last) for each parameter that meets flat range [begin, end): elements
// [first, last) of that parameter.
template <class Visit>
void ForEachOverlap(const ParamLayout& layout, std::int64_t begin, std::int64_t end,
                    const Visit& visit) {
  for (const ParamSpec& spec : layout.specs()) {
    const std::int64_t first = std::max(begin, spec.offset) - spec.offset;
    const std::int64_t last = std::min(end, spec.offset + spec.numel) - spec.offset;
    if (first < last) visit(spec, first, last);
  }
}

// Elements [begin, begin + out.size()) of the flat buffer; what is between parameters is left
// alone.
Status ReadRange(const CheckpointReader& reader, const Group& group, std::int64_t begin,
                 std::span<float> out) {
  Status status;
  ForEachOverlap(*group.layout, begin, begin + static_cast<std::int64_t>(out.size()),
                 [&](const ParamSpec& spec, std::int64_t first, std::int64_t last) {
                   if (!status) return;
                   status = reader.Read(
                       group.name + "/" + spec.name, first,
                       out.subspan(static_cast<std::size_t>(spec.offset + first - begin),
                                   static_cast<std::size_t>(last - first)));
                 });
  return status;
}

Status ReadGroup(const CheckpointReader& reader, const Group& group) {
  const std::span<float> data(group.data.data_ptr<float>(),
                              static_cast<std::size_t>(group.data.numel()));
  if (group.data.is_cpu()) return ReadRange(reader, group, group.begin, data);
  constexpr std::size_t kPiece = std::size_t{4} << 20;  // elements: 16 MiB
  std::vector<float> piece;
  for (std::size_t begin = 0; begin < data.size(); begin += kPiece) {
    piece.assign(std::min(kPiece, data.size() - begin), 0.0F);  // as between parameters
    DD2_TRY(ReadRange(reader, group, group.begin + static_cast<std::int64_t>(begin), piece));
    DD2_TRY(CopyMemory(&data[begin], piece.data(), piece.size() * sizeof(float)));
  }
  return {};
}

using MetricList = google::protobuf::RepeatedPtrField<proto::Metric>;

void PutMetrics(const Metrics& metrics, MetricList& out) {
  for (const auto& [name, value] : metrics) {
    proto::Metric* metric = out.Add();
    metric->set_name(name);
    metric->set_value(value);
  }
}

Metrics MetricsOf(const MetricList& list) {
  Metrics metrics;
  for (const proto::Metric& metric : list) metrics.emplace_back(metric.name(), metric.value());
  return metrics;
}

constexpr const char* kSamples = "samples";  // beside the figures of `start`

std::string ExtraJson(const TrainingState& state) {
  boost::json::object extra;
  extra["generator_adam_steps"] = state.generator.adam_steps;
  extra["guidance_adam_steps"] = state.guidance.adam_steps;
  extra["start"] = nullptr;
  if (state.start) {
    boost::json::object& start = extra["start"].emplace_object();
    // JSON has no word for what is not finite: left out.
    for (const auto& [name, value] : state.start->figures) {
      if (std::isfinite(value)) start[name] = value;
    }
    start[kSamples] = state.start->samples;
  }
  return boost::json::serialize(extra);
}

Status ReadExtra(const std::string& text, TrainingState& state) {
  boost::system::error_code failure;
  const boost::json::value value = boost::json::parse(text, failure);
  const boost::json::object* extra = failure ? nullptr : value.if_object();
  if (extra == nullptr) return Error(Code::kCorruption, "the manifest's extra state is no JSON");
  for (const char* key : {"generator_adam_steps", "guidance_adam_steps", "start"}) {
    if (!extra->contains(key)) {
      return Error(Code::kCorruption, std::string("the manifest's extra state lacks ") + key);
    }
  }
  state.generator.adam_steps = extra->at("generator_adam_steps").to_number<std::int64_t>();
  state.guidance.adam_steps = extra->at("guidance_adam_steps").to_number<std::int64_t>();
  state.start.reset();
  if (const boost::json::object* start = extra->at("start").if_object()) {
    Quality& quality = state.start.emplace();
    for (const auto& [name, value] : *start) {
      if (name == kSamples) quality.samples = value.to_number<std::int64_t>();
      if (name != kSamples) quality.figures.emplace_back(name, value.to_number<double>());
    }
  }
  return {};
}

// A checkpoint of another configuration or teacher would load and then train something else.
Status CheckIdentity(const proto::CheckpointHeader& header, const CheckpointIdentity& identity) {
  const std::array<std::tuple<const char*, std::string, std::string>, 3> fields{{
      {"configuration", header.config_digest(), identity.config_digest},
      {"teacher", header.teacher_digest(), identity.teacher_digest},
      {"numeric mode", header.numeric_mode(), identity.numeric_mode},
  }};
  for (const auto& [what, stored, ours] : fields) {
    if (stored != ours) {
      return Error(Code::kFailedPrecondition, std::string("it was made with another ") + what +
                                                  " (" + stored + ", this run has " + ours +
                                                  "): continuing would not give the same result");
    }
  }
  return {};
}

}  // namespace

TrainingState MakeTrainingState(const ParamLayout& layout, int local_rank, int local_size) {
  TrainingState state;
  state.guidance = MakeNetworkState(layout, local_rank, local_size, true);
  state.generator = MakeNetworkState(layout, local_rank, local_size, true);
  return state;
}

std::int64_t CheckpointBytes(const ParamLayout& layout) {
  // Parameters, two moments and the moving average of two networks.
  constexpr std::int64_t kTensorsPerParameter = 8;
  std::int64_t elements = 0;
  for (const ParamSpec& spec : layout.specs()) elements += spec.numel;
  return elements * kTensorsPerParameter * static_cast<std::int64_t>(sizeof(float));
}

void AdvanceSteps(TrainingState& state, std::int64_t steps) {
  state.step += steps;
  state.updates = 0;
  state.step_metrics.clear();
  state.step_wish = Wish();
}

std::vector<at::Tensor> SlicesOf(const TrainingState& state) {
  std::vector<at::Tensor> slices;
  for (const NetworkState* network : {&state.generator, &state.guidance}) {
    slices.push_back(network->params.flat().detach().narrow(0, network->begin, network->slice));
    for (const at::Tensor& own : {network->adam_m, network->adam_v, network->ema}) {
      slices.push_back(own);
    }
  }
  return slices;
}

proto::RankState SmallStateOf(const TrainingState& state) {
  proto::RankState small;
  small.mutable_position()->set_phase(state.phase);
  small.mutable_position()->set_step(state.step);
  small.mutable_position()->set_updates(state.updates);
  *small.mutable_counters() = state.counters;
  small.set_generator_adam_steps(state.generator.adam_steps);
  small.set_guidance_adam_steps(state.guidance.adam_steps);
  if (state.start) {
    PutMetrics(state.start->figures, *small.mutable_start()->mutable_figures());
    small.mutable_start()->set_samples(state.start->samples);
  }
  PutMetrics(state.step_metrics, *small.mutable_step_metrics());
  small.mutable_step_wish()->set_version(state.step_wish.version);
  small.mutable_step_wish()->set_checkpoint_requests(state.step_wish.checkpoint_requests);
  small.mutable_step_wish()->set_paused(state.step_wish.paused);
  small.mutable_step_wish()->set_stop(state.step_wish.stop);
  return small;
}

void TakeOver(const proto::RankState& small, TrainingState& state) {
  state.phase = small.position().phase();
  state.step = small.position().step();
  state.updates = small.position().updates();
  state.counters = small.counters();
  state.generator.adam_steps = small.generator_adam_steps();
  state.guidance.adam_steps = small.guidance_adam_steps();
  state.start.reset();
  if (small.has_start()) {
    state.start =
        Quality{.figures = MetricsOf(small.start().figures()), .samples = small.start().samples()};
  }
  state.step_metrics = MetricsOf(small.step_metrics());
  state.step_wish = Wish{.version = small.step_wish().version(),
                         .checkpoint_requests = small.step_wish().checkpoint_requests(),
                         .paused = small.step_wish().paused(),
                         .stop = small.step_wish().stop()};
}

proto::CheckpointHeader HeaderOf(const TrainingState& state, const CheckpointIdentity& identity,
                                 int world_size) {
  proto::CheckpointHeader header;
  header.set_phase(state.phase);
  header.set_step(state.step);
  *header.mutable_counters() = state.counters;
  // These differ between ranks.
  header.mutable_counters()->set_cache_hits(0);
  header.mutable_counters()->set_cache_misses(0);
  header.set_config_digest(identity.config_digest);
  header.set_teacher_digest(identity.teacher_digest);
  header.set_numeric_mode(identity.numeric_mode);
  header.set_code_version(identity.code_version);
  header.set_seed(identity.seed);
  header.set_world_size(world_size);
  header.set_extra_json(ExtraJson(state));
  for (const Group& group : GroupsOf(state)) {
    for (const ParamSpec& spec : group.layout->specs()) {
      proto::LogicalTensor* tensor = header.add_tensors();
      tensor->set_name(group.name + "/" + spec.name);
      for (const std::int64_t extent : spec.shape) tensor->add_shape(extent);
    }
  }
  return header;
}

std::vector<PieceToWrite> PiecesOf(const TrainingState& state, const RankLayout& ranks) {
  std::vector<PieceToWrite> pieces;
  const std::int64_t chunks = state.guidance.slice / kParamChunk;
  const auto cut = [&](int domain) {
    return state.guidance.begin + chunks * domain / ranks.domains() * kParamChunk;
  };
  const std::int64_t begin = cut(ranks.domain());
  const std::int64_t end = cut(ranks.domain() + 1);
  for (const Group& group : GroupsOf(state)) {
    const float* data = group.data.const_data_ptr<float>();
    ForEachOverlap(*group.layout, begin, end,
                   [&](const ParamSpec& spec, std::int64_t first, std::int64_t last) {
                     pieces.push_back({.tensor = group.name + "/" + spec.name,
                                       .shape = spec.shape,
                                       .begin = first,
                                       .end = last,
                                       .data = {data + (spec.offset + first - group.begin),
                                                static_cast<std::size_t>(last - first)}});
                   });
  }
  return pieces;
}

Status RestoreState(FileSystem& files, const std::filesystem::path& checkpoints,
                    const std::string& id, const CheckpointIdentity& identity,
                    TrainingState& state) {
  Result<CheckpointReader> reader = CheckpointReader::Open(files, checkpoints, id);
  if (!reader) return reader.error().Wrap("checkpoint " + id);
  const proto::CheckpointHeader& header = reader->manifest().header();
  if (const Status same = CheckIdentity(header, identity); !same) {
    return same.error().Wrap("checkpoint " + id);
  }
  state.whole = false;
  DD2_TRY(WaitForCompute());  // it may still change them
  for (const Group& group : GroupsOf(state)) {
    if (const Status read = ReadGroup(*reader, group); !read) {
      return read.error().Wrap("checkpoint " + id);
    }
  }
  state.counters = header.counters();
  state.phase = header.phase();
  state.step = 0;
  AdvanceSteps(state, header.step());
  DD2_TRY(ReadExtra(header.extra_json(), state));
  state.whole = true;
  return {};
}

}  // namespace dd2

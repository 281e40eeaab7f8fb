#include "worker/models/inception.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "common/json.h"
#include "storage/safetensors.h"
#include "tests/support/zip_archive.h"
#include "tests/unit/storage_testing.h"

namespace dd2 {
namespace {

namespace json = boost::json;

constexpr double kTolerance = 2e-4;  // of the largest value

// The formula of golden/make_inception_case.py.
float FormulaValue(const ParamSpec& spec, std::size_t j, std::int64_t k) {
  const auto x = static_cast<double>(k);
  const double s = std::sin(0.013 * (x * x) + 0.7 * x + 1.3 * static_cast<double>(j) + 0.5);
  const std::int64_t inputs = spec.numel / spec.shape.front();
  const auto fan_in = static_cast<double>(inputs);
  if (spec.name.ends_with("conv.weight")) return static_cast<float>(2 * s / std::sqrt(fan_in));
  if (spec.name == "fc.weight") return static_cast<float>(s / 16);
  if (spec.name.ends_with("bn.weight") || spec.name.ends_with("running_var")) {
    return static_cast<float>(1 + 0.1 * s);
  }
  return static_cast<float>(0.1 * s);
}

ParamBuffer FormulaParams() {
  ParamBuffer params(Inception::Layout(), /*requires_grad=*/false);
  const std::vector<ParamSpec>& specs = params.layout().specs();
  for (std::size_t j = 0; j < specs.size(); ++j) {
    float* values = params.flat().data_ptr<float>() + specs[j].offset;
    for (std::int64_t k = 0; k < specs[j].numel; ++k) values[k] = FormulaValue(specs[j], j, k);
  }
  return params;
}

at::Tensor FormulaImages(std::int64_t count, std::int64_t height, std::int64_t width) {
  const at::Tensor n = at::arange(count, at::kLong).view({-1, 1, 1, 1});
  const at::Tensor y = at::arange(height, at::kLong).view({1, -1, 1, 1});
  const at::Tensor x = at::arange(width, at::kLong).view({1, 1, -1, 1});
  const at::Tensor c = at::arange(3, at::kLong).view({1, 1, 1, -1});
  const at::Tensor sum = y * y * 7 + x * x * (c + 1) * 3 + x * y * 5 + n * 31 + c * 11;
  return sum.remainder(256).to(at::kByte);
}

json::value Golden() {
  std::ifstream file(DD2_SOURCE_DIR "/tests/golden/inception_fid.json");
  std::stringstream text;
  text << file.rdbuf();
  return json::parse(text.str());
}

// Largest error against a recorded output, relative to its largest value.
double ErrorOf(const at::Tensor& output, const json::value& expected) {
  std::vector<std::int64_t> shape;
  for (const json::value& extent : expected.at("shape").as_array()) {
    shape.push_back(extent.to_number<std::int64_t>());
  }
  EXPECT_EQ(output.sizes().vec(), shape);
  const at::Tensor flat = output.flatten().to(at::kDouble);
  const json::array& values = expected.at("values").as_array();
  const auto strides = static_cast<std::int64_t>(values.size());
  double worst = std::abs(flat.norm().item<double>() / expected.at("l2").to_number<double>() - 1);
  const auto largest = expected.at("largest").to_number<double>();
  for (std::int64_t i = 0; i < strides; ++i) {
    const auto value = values[static_cast<std::size_t>(i)].to_number<double>();
    const double actual = flat[i * flat.numel() / strides].item<double>();
    worst = std::max(worst, std::abs(actual - value) / largest);
  }
  return worst;
}

TEST(Inception, GivesTheFeaturesOfTheReference) {
  const Inception network(FormulaParams());
  const json::value golden = Golden();
  for (const json::value& entry : golden.at("cases").as_array()) {
    const json::array& images = entry.at("images").as_array();
    const InceptionFeatures features = network.Features(
        FormulaImages(images[0].to_number<std::int64_t>(), images[1].to_number<std::int64_t>(),
                      images[2].to_number<std::int64_t>()));
    const double pool = ErrorOf(features.pool, entry.at("pool"));
    const double spatial = ErrorOf(features.spatial, entry.at("spatial"));
    const double logits =
        ErrorOf(features.pool.matmul(network.last_weight().t()), entry.at("logits"));
    EXPECT_LT(pool, kTolerance);
    EXPECT_LT(spatial, kTolerance);
    EXPECT_LT(logits, kTolerance);
    std::printf("largest errors: pool %.1e, spatial %.1e, logits %.1e\n", pool, spatial, logits);
  }
}

TEST(Inception, ResizesWithoutAHalfPixel) {
  // 2 -> 4: outputs 0..3 read at 0, 0.5, 1 and 1.5, and the last has no right neighbour.
  const at::Tensor image = at::tensor({0.0F, 8.0F, 0.0F, 8.0F}).view({1, 1, 2, 2});
  const at::Tensor row = at::tensor({0.0F, 4.0F, 8.0F, 8.0F}).expand({1, 1, 4, 4});
  EXPECT_TRUE(ResizeLikeTensorFlow1(image, 4).equal(row));
  const at::Tensor turned = ResizeLikeTensorFlow1(image.transpose(2, 3).contiguous(), 4);
  EXPECT_TRUE(turned.equal(row.transpose(2, 3)));
}

TEST(Inception, LayoutIsThatOfThePort) {
  const ParamLayout layout = Inception::Layout();
  // 94 convolutions with 5 tensors each, and the last weight.
  EXPECT_EQ(layout.specs().size(), 94U * 5 + 1);
  EXPECT_EQ(layout.Find("Mixed_7c.branch3x3dbl_3b.conv.weight").shape,
            (std::vector<std::int64_t>{384, 384, 3, 1}));
}

// A file of torch.save with tensors that are views of one storage: number j begins at element j.
class TorchFileMaker {
 public:
  void Add(const std::string& name, std::vector<std::int64_t> shape) {
    pickle_ += Text(name) + "ctorch._utils\n_rebuild_tensor_v2\n((" + Text("storage") +
               "ctorch\nFloatStorage\n" + Text("0") + Text("cpu") + Int(kElements) + "tQ" +
               Int(tensors_++);
    std::vector<std::int64_t> strides(shape.size(), 1);
    for (std::size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
    pickle_ += Tuple(shape) + Tuple(strides) + "\x89" + "ccollections\nOrderedDict\n)RtR";
  }
  static std::vector<float> Storage() {
    std::vector<float> values(kElements);
    for (std::size_t i = 0; i < values.size(); ++i) {
      values[i] = 1.0F + static_cast<float>(i % 8191) / 8192.0F;
    }
    return values;
  }
  // A checksum of 0 is none.
  std::string File(std::uint32_t checksum = 0) const {
    const std::vector<float> values = Storage();
    const std::string data(reinterpret_cast<const char*>(values.data()),
                           values.size() * sizeof(float));
    return ZipArchive({{.name = "inception/data.pkl", .content = pickle_ + "u.", .crc32 = 0},
                       {.name = "inception/data/0", .content = data, .crc32 = checksum}});
  }

 private:
  static constexpr std::int64_t kElements = Inception::kClasses * Inception::kPool + 1000;
  static std::string Int(std::int64_t value) {
    return "J" + ZipWord(static_cast<std::size_t>(value));
  }
  static std::string Text(const std::string& text) { return "X" + ZipWord(text.size()) + text; }
  static std::string Tuple(const std::vector<std::int64_t>& values) {
    std::string tuple = "(";
    for (const std::int64_t value : values) tuple += Int(value);
    return tuple + "t";
  }
  std::string pickle_ = "\x80\x02}(";
  std::int64_t tensors_ = 0;
};

TEST(Inception, ReadsThePublishedFile) {
  const TemporaryFolder folder;
  ParamBuffer params(Inception::Layout(), /*requires_grad=*/false);
  const std::vector<float> storage = TorchFileMaker::Storage();
  TorchFileMaker file;
  std::vector<TensorToWrite> tensors;
  for (const ParamSpec& spec : params.layout().specs()) {
    float* values = params.flat().data_ptr<float>() + spec.offset;
    std::copy_n(storage.begin() + std::ssize(tensors), spec.numel, values);
    file.Add(spec.name, spec.shape);
    tensors.push_back({spec.name, spec.shape, {values, static_cast<std::size_t>(spec.numel)}});
  }
  // What the network does not use.
  file.Add("fc.bias", {Inception::kClasses});
  file.Add("Conv2d_1a_3x3.bn.num_batches_tracked", {});
  WriteAll(folder.path() / "inception.pth", file.File());
  ASSERT_TRUE(
      WriteSafetensors(RealFileSystem(), folder.path() / "inception.safetensors", tensors, {}));
  const Inception expected(params);
  for (const char* name : {"inception.pth", "inception.safetensors"}) {
    const Result<Inception> read = Inception::Load(folder.path() / name);
    ASSERT_TRUE(read) << read.error().message();
    EXPECT_EQ(read->digest(), expected.digest()) << name;
    EXPECT_TRUE(read->last_weight().equal(expected.last_weight()));
  }
  WriteAll(folder.path() / "inception.pth", file.File(/*checksum=*/1));
  EXPECT_EQ(Inception::Load(folder.path() / "inception.pth").error().code(), Code::kCorruption);
}

TEST(Inception, SaysWhatIsWrongWithOtherFiles) {
  const TemporaryFolder folder;
  for (const char* name : {"/nowhere/inception.pth", "/nowhere/inception.safetensors"}) {
    EXPECT_EQ(Inception::Load(name).error().code(), Code::kNotFound);
  }
  const auto expect = [&](const Result<Inception>& network, Code code, const char* reason) {
    ASSERT_FALSE(network);
    EXPECT_EQ(network.error().code(), code);
    EXPECT_NE(network.error().message().find(reason), std::string::npos)
        << network.error().message();
  };
  expect(Inception::Load(DD2_SOURCE_DIR "/tests/golden/torch_files/state_dict.pt"),
         Code::kInvalidArgument, "not the FID network");
  TorchFileMaker other;
  other.Add("Conv2d_1a_3x3.conv.weight", {32, 3, 5, 5});
  WriteAll(folder.path() / "other.pth", other.File());
  expect(Inception::Load(folder.path() / "other.pth"), Code::kInvalidArgument, "another shape");
  WriteAll(folder.path() / "text.pth", "weights");
  expect(Inception::Load(folder.path() / "text.pth"), Code::kCorruption, "torch.save");
}

}  // namespace
}  // namespace dd2

#include "worker/models/inception.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "common/json.h"

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
    const double logits = ErrorOf(features.logits, entry.at("logits"));
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

TEST(Inception, SaysWhatToDoWithOtherFiles) {
  const Result<Inception> pickled = Inception::Load("/nowhere/inception.pth");
  ASSERT_FALSE(pickled);
  EXPECT_EQ(pickled.error().code(), Code::kInvalidArgument);
  EXPECT_NE(pickled.error().message().find("import"), std::string::npos);
  EXPECT_EQ(Inception::Load("/nowhere/inception.safetensors").error().code(), Code::kNotFound);
}

}  // namespace
}  // namespace dd2

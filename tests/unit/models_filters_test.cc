#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "worker/models/filters.h"

namespace dd2 {
namespace {

constexpr float kGone = -std::numeric_limits<float>::infinity();

TeacherConfig Filter(int top_k, double top_p, double temperature = 1.0) {
  TeacherConfig config;
  config.cfg_scale = 1.0;
  config.top_k = top_k;
  config.top_p = top_p;
  config.temperature = temperature;
  return config;
}

// log of 0.1, 0.4, 0.2, 0.3.
at::Tensor HandLogits() { return at::tensor({0.1F, 0.4F, 0.2F, 0.3F}).log(); }

std::vector<bool> Kept(const at::Tensor& filtered) {
  std::vector<bool> kept;
  for (std::int64_t i = 0; i < filtered.numel(); ++i) {
    kept.push_back(filtered[i].item<float>() != kGone);
  }
  return kept;
}

using ::testing::ElementsAre;

TEST(FilterLogits, LeavesLogitsAloneWithoutFilters) {
  EXPECT_TRUE(at::equal(FilterLogits(HandLogits(), Filter(0, 1.0)), HandLogits()));
  EXPECT_EQ(FilterThreshold(HandLogits(), Filter(0, 1.0)).item<float>(), kGone);
}

TEST(FilterLogits, TopKKeepsTheLargest) {
  EXPECT_THAT(Kept(FilterLogits(HandLogits(), Filter(2, 1.0))),
              ElementsAre(false, true, false, true));
  EXPECT_FLOAT_EQ(FilterThreshold(HandLogits(), Filter(2, 1.0)).item<float>(), std::log(0.3F));
  EXPECT_THAT(Kept(FilterLogits(HandLogits(), Filter(9, 1.0))),
              ElementsAre(true, true, true, true));
}

TEST(FilterLogits, TopPKeepsTheCodeThatCrosses) {
  // Sorted .4 .3 .2 .1: 0.5 is crossed by .3, 0.75 by .2.
  EXPECT_THAT(Kept(FilterLogits(HandLogits(), Filter(0, 0.5))),
              ElementsAre(false, true, false, true));
  EXPECT_THAT(Kept(FilterLogits(HandLogits(), Filter(0, 0.75))),
              ElementsAre(false, true, true, true));
  EXPECT_THAT(Kept(FilterLogits(HandLogits(), Filter(0, 0.01))),
              ElementsAre(false, true, false, false));
}

TEST(FilterLogits, TopPCountsWhatTopKLeft) {
  // After top-k 2 the rest is .571 .429: p = .5 is crossed by the first alone.
  EXPECT_THAT(Kept(FilterLogits(HandLogits(), Filter(2, 0.5))),
              ElementsAre(false, true, false, false));
}

TEST(FilterLogits, TemperatureComesFirst) {
  // At temperature 0.5 probabilities are .01 .16 .04 .09 over .3: .533 .3 .133 .033.
  const at::Tensor filtered = FilterLogits(HandLogits(), Filter(0, 0.5, 0.5));
  EXPECT_THAT(Kept(filtered), ElementsAre(false, true, false, false));
  EXPECT_FLOAT_EQ(filtered[1].item<float>(), 2 * std::log(0.4F));
}

TEST(FilterLogits, WorksPerRow) {
  const at::Tensor rows = at::stack({HandLogits(), HandLogits().flip(0)}).view({2, 1, 4});
  const at::Tensor filtered = FilterLogits(rows, Filter(1, 1.0));
  EXPECT_EQ(FilterThreshold(rows, Filter(1, 1.0)).sizes(), (std::vector<std::int64_t>{2, 1}));
  EXPECT_THAT(Kept(filtered[0][0]), ElementsAre(false, true, false, false));
  EXPECT_THAT(Kept(filtered[1][0]), ElementsAre(false, false, true, false));
}

// Five codes, the last three equal: all of them are the third largest.
TEST(FilterLogits, EqualsOfTheKthStay) {
  const at::Tensor logits = at::tensor({0.25F, 0.3F, 0.15F, 0.15F, 0.15F}).log();
  for (const TopP top_p : {TopP::kLlamaGen, TopP::kVar}) {
    EXPECT_THAT(Kept(FilterLogits(logits, Filter(3, 1.0), top_p)),
                ElementsAre(true, true, true, true, true));
    EXPECT_THAT(Kept(FilterLogits(logits, Filter(2, 1.0), top_p)),
                ElementsAre(true, true, false, false, false));
    // They count for top-p: .3 and .25 are .55 of the whole, but .79 of the first three codes.
    EXPECT_THAT(Kept(FilterLogits(logits, Filter(3, 0.7), top_p)),
                ElementsAre(true, true, true, true, true));
    EXPECT_THAT(Kept(FilterLogits(logits, Filter(3, 0.5), top_p)),
                ElementsAre(true, true, false, false, false));
  }
}

// Where a cut falls between two codes exactly (dyadic probabilities), both conventions name it: the
// crossing code stays when p itself is reached in front of it, the smallest go at 1 - p itself.
TEST(FilterLogits, ConventionsDifferOnTheBoundary) {
  const at::Tensor logits = at::tensor({0.125F, 0.5F, 0.125F, 0.25F}).log2() * std::log(2.0F);
  const at::Tensor probabilities = at::softmax(logits, -1);
  ASSERT_TRUE(at::equal(probabilities, at::tensor({0.125F, 0.5F, 0.125F, 0.25F})));
  EXPECT_THAT(Kept(FilterLogits(logits, Filter(0, 0.5), TopP::kLlamaGen)),
              ElementsAre(false, true, false, true));
  EXPECT_THAT(Kept(FilterLogits(logits, Filter(0, 0.5), TopP::kVar)),
              ElementsAre(false, true, false, false));
}

TEST(FilterLogits, VarTopPAlwaysKeepsTheLargest) {
  EXPECT_THAT(Kept(FilterLogits(HandLogits(), Filter(0, 0.01), TopP::kVar)),
              ElementsAre(false, true, false, false));
  EXPECT_THAT(Kept(FilterLogits(HandLogits(), Filter(2, 0.5), TopP::kVar)),
              ElementsAre(false, true, false, false));
  EXPECT_THAT(Kept(FilterLogits(HandLogits(), Filter(0, 0.75), TopP::kVar)),
              ElementsAre(false, true, true, true));
  EXPECT_TRUE(at::equal(FilterLogits(HandLogits(), Filter(0, 1.0), TopP::kVar), HandLogits()));
}

}  // namespace
}  // namespace dd2

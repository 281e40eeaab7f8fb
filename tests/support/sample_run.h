#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

namespace dd2 {

// A run folder with MADE-UP figures, for tests of the report and for looking at its design: names,
// numbers and pictures say so. Nothing here was measured.

// A grey PNG with an uncompressed zlib stream, so that tests of cli/ need no picture library.
inline std::string UncompressedPng(int width, int height, const std::vector<std::uint8_t>& pixels) {
  const auto big_endian = [](std::uint32_t value) {
    std::string out;
    for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift & 255U);
    return out;
  };
  const auto chunk = [&](const std::string& type, const std::string& data) {
    std::uint32_t crc = 0xffffffffU;
    for (const char c : type + data) {
      crc ^= static_cast<unsigned char>(c);
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ ((crc & 1U) != 0 ? 0xedb88320U : 0U);
    }
    return big_endian(static_cast<std::uint32_t>(data.size())) + type + data + big_endian(~crc);
  };
  std::string raw;
  for (int y = 0; y < height; ++y) {
    raw += '\0';  // no filter
    for (int x = 0; x < width; ++x) {
      raw += static_cast<char>(pixels[static_cast<std::size_t>(y * width + x)]);
    }
  }
  std::uint32_t a = 1;
  std::uint32_t b = 0;
  for (const char c : raw) {
    a = (a + static_cast<unsigned char>(c)) % 65521U;
    b = (b + a) % 65521U;
  }
  std::string stream = "\x78\x01";
  constexpr std::size_t kBlock = 65535;
  for (std::size_t at = 0; at < raw.size(); at += kBlock) {
    const std::string block = raw.substr(at, kBlock);
    const auto size = static_cast<std::uint32_t>(block.size());
    stream += static_cast<char>(at + kBlock >= raw.size() ? 1 : 0);
    for (const std::uint32_t word : {size, ~size}) {
      stream += static_cast<char>(word & 255U);
      stream += static_cast<char>(word >> 8 & 255U);
    }
    stream += block;
  }
  stream += big_endian(b << 16 | a);
  const std::string header = big_endian(static_cast<std::uint32_t>(width)) +
                             big_endian(static_cast<std::uint32_t>(height)) +
                             std::string("\x08\x00\x00\x00\x00", 5);
  return "\x89PNG\r\n\x1a\n" + chunk("IHDR", header) + chunk("IDAT", stream) + chunk("IEND", "");
}

// 10 x 10 cells of 30 pixels; row r shows a disc or a ring of its own size, `blur` softens it.
inline std::string SampleGridPng(double blur) {
  constexpr int kSide = 300;
  std::vector<std::uint8_t> pixels(static_cast<std::size_t>(kSide * kSide));
  for (int y = 0; y < kSide; ++y) {
    for (int x = 0; x < kSide; ++x) {
      const int row = y / 30;
      const int column = x / 30;
      const double distance =
          std::hypot(y % 30 - 14.5, (x % 30 - 14.5) * (1 + 0.07 * (column % 4)));
      const double edge = 5.0 + 0.8 * row;
      double value = 1 / (1 + std::exp((distance - edge) / blur));
      if (row % 2 == 1) value -= 1 / (1 + std::exp((distance - edge / 2) / blur));
      const bool margin = x % 30 == 0 || x % 30 == 29 || y % 30 == 0 || y % 30 == 29;
      pixels[static_cast<std::size_t>(y * kSide + x)] =
          margin ? std::uint8_t{24} : static_cast<std::uint8_t>(std::lround(235 * std::abs(value)));
    }
  }
  return UncompressedPng(kSide, kSide, pixels);
}

inline std::string SampleMetrics() {
  std::string lines;
  auto noise = [state = 1U]() mutable {
    state = state * 1664525U + 1013904223U;
    return static_cast<double>(state >> 8) / (1 << 24) - 0.5;
  };
  const auto line = [&](int phase, const char* kind, int step, const std::string& values) {
    lines += "{\"phase\":" + std::to_string(phase) + ",\"kind\":\"" + kind +
             "\",\"step\":" + std::to_string(step) + ",\"time\":0," + values + "}\n";
  };
  const auto value = [](const char* name, double x) {
    return "\"" + std::string(name) + "\":" + std::to_string(x);
  };
  for (int i = 1; i <= 300; ++i) {
    std::string values =
        value("gts/loss", (0.13 + 1.5 * std::exp(-i / 55.0)) * (1 + 0.12 * noise()));
    if (i % 50 == 0) {
      values += "," + value("gts/validation_loss", 0.135 + 1.5 * std::exp(-i / 55.0));
    }
    line(2, "gts", i, values);
  }
  for (int i = 1; i <= 80; ++i) {
    line(3, "regress", i, value("regress/loss", 0.2 + 0.8 * std::exp(-i / 20.0)));
  }
  int cycle = 0;
  for (const auto& [phase, cycles] : {std::pair{4, 110}, std::pair{6, 60}}) {
    for (int i = 1; i <= cycles; ++i, ++cycle) {
      line(phase, "csd", i,
           value("csd/fcs", 0.62 + 0.1 * std::exp(-cycle / 30.0) + 0.03 * noise()) + "," +
               value("csd/sid", -0.13 + 0.1 * noise()) + "," +
               value("csd/dmu", (0.04 + 0.08 * std::exp(-cycle / 60.0)) * (1 + 0.2 * noise())) +
               "," + value("csd/generator_norm", 3.2 + 2.2 * noise()) + "," +
               value("csd/guidance_norm", 0.8 + 0.3 * noise()));
      if (i % 10 == 0 || (phase == 4 && i == 1)) {
        line(phase, "csd", i, value("eval/fdr", 38 + 551 * std::exp(-cycle / 22.0)));
      }
    }
    if (phase == 4) {
      for (int i = 1; i <= 40; ++i) line(5, "align", i, value("align/fcs", 0.66 + 0.03 * noise()));
    }
  }
  return lines;
}

inline void WriteSampleRun(const std::filesystem::path& run) {
  std::filesystem::create_directories(run / "samples");
  const auto write = [&](const std::filesystem::path& name, const std::string& text) {
    std::ofstream(run / name, std::ios::binary) << text;
  };
  write("result.json", R"({"name": "made-up sample run", "outcome": "finished", "seed": 7,
    "fdr_start": 589.04, "fd_start": 851.8, "accuracy_start": 0.166, "samples_start": 2000,
    "fdr_end": 43.14, "fd_end": 161.2, "accuracy": 0.874, "samples": 5000,
    "fdr_teacher": 3.668, "fd_teacher": 47.9, "accuracy_teacher": 0.9, "teacher_samples": 5000,
    "fdr_reconstruction": 0, "fd_reconstruction": 48.3, "accuracy_reconstruction": 0.843,
    "test_images": 10000, "accuracy_real": 0.9, "speedup_batch1": 17.84, "speedup_batch64": 4.19,
    "latency": {"batch1": {"teacher_ms": 83.7, "one_step_ms": 4.69, "decode_ms": 0.81, "speedup_with_decode": 15.4},
                "batch64": {"teacher_ms": 566, "one_step_ms": 135, "decode_ms": 16, "speedup_with_decode": 3.85}},
    "classes": ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"],
    "fdr_by_class_end": [61.2, 40.5, 52.6, 47.9, 44.1, 98.7, 71.3, 38.4, 201.6, 45],
    "fdr_by_class_teacher": [8.1, 6.2, 9.4, 7.7, 8.8, 14.9, 10.3, 5.6, 16.4, 7],
    "seconds": {"teacher_check": 2.1, "sample": 31.5, "gts": 98.2, "csd": 104.6, "align": 12.4,
                "csd 2": 47.3, "eval": 15.1, "export": 0.8},
    "cache": {"hits": 16000, "misses": 4000},
    "checkpoints": {"count": 6, "bytes": 220400000, "stall_seconds": 1.25},
    "versions": {"dd2": "0.1.0-sample", "libtorch": "2.11.0", "open_mpi": "4.1.4", "rocksdb": "7.8.3"}})");
  write("metrics.jsonl", SampleMetrics());
  write("config.yaml", "name: made-up\nseed: 7\nranks: 2\n# made-up settings of a sample\n");
  write("samples/teacher.png", SampleGridPng(0.7));
  write("samples/generator.png", SampleGridPng(1.1));
  write("samples/start.png", SampleGridPng(4.0));
  write("samples/real.png", SampleGridPng(0.35));
  write("samples/reconstruction.png", SampleGridPng(0.9));
}

}  // namespace dd2

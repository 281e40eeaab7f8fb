#include "storage/pickle.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <unordered_map>
#include <utility>

#include "storage/byte_cursor.h"

namespace dd2 {
namespace {

Error Damaged(std::string what) { return {Code::kCorruption, std::move(what)}; }

bool IsPrintable(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c > ' ' && c < 0x7f; });
}

// Names of the instructions, as Python's pickletools has them, where more than one place needs one.
enum Opcode : std::uint8_t {
  kProto = 0x80,
  kStop = '.',
  kMark = '(',
  kNone = 'N',
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kLong1 = 0x8a,
  kBinFloat = 'G',
  kBinUnicode = 'X',
  kEmptyTuple = ')',
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kTuple = 't',
  kEmptyList = ']',
  kEmptyDict = '}',
  kAppend = 'a',
  kAppends = 'e',
  kSetItem = 's',
  kSetItems = 'u',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kGlobal = 'c',
  kBinPersId = 'Q',
  kReduce = 'R',
  kNewObj = 0x81,
  kBuild = 'b',
};

class Machine {
 public:
  Machine(std::span<const std::byte> bytes, std::span<const std::string_view> globals,
          std::span<const std::string_view> objects)
      : cursor_(bytes.first(std::min(bytes.size(), kPickleBytesMax))),
        globals_(globals),
        objects_(objects) {}

  Result<Pickle> Run() {
    while (true) {
      DD2_TRY_ASSIGN(const auto opcode, cursor_.TakeInt<std::uint8_t>());
      if (opcode == kStop) return Stop();
      auto done = Constant(opcode);
      if (done && !*done) done = Container(opcode);
      if (done && !*done) done = Memo(opcode);
      if (done && !*done) done = Named(opcode);
      if (!done) return done.error();
      if (!*done) return Unknown(opcode);
    }
  }

 private:
  // Each group of instructions says whether `opcode` was one of its own.
  Result<bool> Constant(std::uint8_t opcode);
  Result<bool> Container(std::uint8_t opcode);
  Result<bool> Memo(std::uint8_t opcode);
  Result<bool> Named(std::uint8_t opcode);

  Error Unknown(std::uint8_t opcode) const {
    return {Code::kCorruption,
            "instruction " + std::to_string(opcode) + " at byte " +
                std::to_string(cursor_.at() - 1) +
                " of the pickle is none that torch.save writes (protocol 2); save the file again "
                "with torch.save(torch.load(FILE), FILE)"};
  }

  Result<Pickle> Stop() {
    if (stack_.size() != 1 || !marks_.empty()) return Damaged("the pickle ends in the middle");
    pickle_.root = stack_.back();
    pickle_.bytes = cursor_.at();
    return std::move(pickle_);
  }

  Status Push(PickleId id) {
    if (++pushes_ > kPickleStackMax) return Damaged("the pickle has too many values");
    stack_.push_back(id);
    return {};
  }
  Status PushNode(PickleNode node) {
    if (pickle_.nodes.size() >= kPickleNodesMax) return Damaged("the pickle has too many values");
    pickle_.nodes.push_back(std::move(node));
    return Push(static_cast<PickleId>(pickle_.nodes.size() - 1));
  }
  Status PushInt(PickleKind kind, std::int64_t value) {
    return PushNode({.kind = kind, .integer = value});
  }
  Status PushText(PickleKind kind, std::string_view text) {
    return PushNode({.kind = kind, .text = std::string(text)});
  }
  Status PushItems(PickleKind kind, std::vector<PickleId> items) {
    return PushNode({.kind = kind, .items = std::move(items)});
  }

  // Where the values begin that belong to nobody yet: above the last mark.
  std::size_t Floor() const { return marks_.empty() ? 0 : marks_.back(); }
  Result<std::vector<PickleId>> Pop(std::size_t count) {
    if (stack_.size() - Floor() < count) return Damaged("the pickle takes what is not there");
    std::vector<PickleId> items(stack_.end() - static_cast<std::ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return items;
  }
  Result<std::vector<PickleId>> PopToMark() {
    if (marks_.empty()) return Damaged("the pickle takes what is not there");
    auto items = Pop(stack_.size() - marks_.back());
    marks_.pop_back();
    return items;
  }
  // The value that `items` are added to: it stays on the stack.
  Status AddTo(PickleKind kind, Result<std::vector<PickleId>> items) {
    if (!items) return items.error();
    if (stack_.size() <= Floor() || pickle_[stack_.back()].kind != kind) {
      return Damaged("the pickle adds to what is no " +
                     std::string(kind == PickleKind::kList ? "list" : "dict"));
    }
    if (kind == PickleKind::kDict && items->size() % 2 != 0) {
      return Damaged("the pickle has a key without a value");
    }
    auto& to = pickle_.nodes[stack_.back()].items;
    to.insert(to.end(), items->begin(), items->end());
    return {};
  }

  Status Put(std::uint32_t index) {
    if (stack_.size() <= Floor()) return Damaged("the pickle keeps what is not there");
    memo_[index] = stack_.back();
    return {};
  }
  Status Get(std::uint32_t index) {
    const auto found = memo_.find(index);
    if (found == memo_.end()) return Damaged("the pickle names what was not kept");
    return Push(found->second);
  }

  Status Global();
  Status Reduce();
  Status NewObject();
  Status Build();

  ByteCursor cursor_;
  std::span<const std::string_view> globals_;
  std::span<const std::string_view> objects_;
  Pickle pickle_;
  std::vector<PickleId> stack_;
  std::vector<std::size_t> marks_;  // heights of the stack
  std::unordered_map<std::uint32_t, PickleId> memo_;
  std::size_t pushes_ = 0;
};

// Runs one instruction; the value of its switch is true.
#define DD2_DONE(expression) \
  do {                       \
    DD2_TRY(expression);     \
    return true;             \
  } while (false)

Result<bool> Machine::Constant(std::uint8_t opcode) {
  const auto text = [this](auto length) -> Status {
    if (!length) return length.error();
    if (*length > kPickleTextMax) return Damaged("the pickle has too long a text");
    DD2_TRY_ASSIGN(const std::string_view taken, cursor_.TakeText(*length));
    return PushText(PickleKind::kString, taken);
  };
  const auto integer = [this](auto value) -> Status {
    if (!value) return value.error();
    return PushInt(PickleKind::kInt, *value);
  };
  switch (opcode) {
    case kProto: {
      DD2_TRY_ASSIGN(const auto protocol, cursor_.TakeInt<std::uint8_t>());
      if (protocol == 2) return true;
      return Error(Code::kCorruption,
                   "pickle protocol " + std::to_string(protocol) +
                       "; save the file again with torch.save's own default, which is 2");
    }
    case kNone: DD2_DONE(PushNode({}));
    case kNewTrue: DD2_DONE(PushInt(PickleKind::kBool, 1));
    case kNewFalse: DD2_DONE(PushInt(PickleKind::kBool, 0));
    case kBinInt: DD2_DONE(integer(cursor_.TakeInt<std::int32_t>()));
    case kBinInt1: DD2_DONE(integer(cursor_.TakeInt<std::uint8_t>()));
    case kBinInt2: DD2_DONE(integer(cursor_.TakeInt<std::uint16_t>()));
    case kBinUnicode: DD2_DONE(text(cursor_.TakeInt<std::uint32_t>()));
    case kLong1: {
      DD2_TRY_ASSIGN(const auto length, cursor_.TakeInt<std::uint8_t>());
      DD2_TRY_ASSIGN(const std::string_view digits, cursor_.TakeText(length));
      if (length > sizeof(std::int64_t)) DD2_DONE(PushText(PickleKind::kBigInt, digits));
      const bool negative = !digits.empty() && (digits.back() & '\x80') != 0;
      std::int64_t value = negative ? -1 : 0;
      std::memcpy(&value, digits.data(), digits.size());
      DD2_DONE(PushInt(PickleKind::kInt, value));
    }
    case kBinFloat: {  // the one big-endian number
      DD2_TRY_ASSIGN(const auto bits, cursor_.TakeInt<std::uint64_t>());
      DD2_DONE(PushNode(
          {.kind = PickleKind::kFloat, .real = std::bit_cast<double>(__builtin_bswap64(bits))}));
    }
    default: return false;
  }
}

Result<bool> Machine::Container(std::uint8_t opcode) {
  const auto tuple = [this](Result<std::vector<PickleId>> items) -> Status {
    if (!items) return items.error();
    return PushItems(PickleKind::kTuple, *std::move(items));
  };
  switch (opcode) {
    case kMark:
      if (++pushes_ > kPickleStackMax) return Damaged("the pickle has too many values");
      marks_.push_back(stack_.size());
      return true;
    case kEmptyTuple: DD2_DONE(PushItems(PickleKind::kTuple, {}));
    case kTuple1: DD2_DONE(tuple(Pop(1)));
    case kTuple2: DD2_DONE(tuple(Pop(2)));
    case kTuple3: DD2_DONE(tuple(Pop(3)));
    case kTuple: DD2_DONE(tuple(PopToMark()));
    case kEmptyList: DD2_DONE(PushItems(PickleKind::kList, {}));
    case kEmptyDict: DD2_DONE(PushItems(PickleKind::kDict, {}));
    case kAppend: DD2_DONE(AddTo(PickleKind::kList, Pop(1)));
    case kAppends: DD2_DONE(AddTo(PickleKind::kList, PopToMark()));
    case kSetItem: DD2_DONE(AddTo(PickleKind::kDict, Pop(2)));
    case kSetItems: DD2_DONE(AddTo(PickleKind::kDict, PopToMark()));
    default: return false;
  }
}

Result<bool> Machine::Memo(std::uint8_t opcode) {
  const bool wide = opcode == kLongBinPut || opcode == kLongBinGet;
  if (!wide && opcode != kBinPut && opcode != kBinGet) return false;
  std::uint32_t index = 0;
  if (wide) {
    DD2_TRY_ASSIGN(index, cursor_.TakeInt<std::uint32_t>());
  } else {
    DD2_TRY_ASSIGN(index, cursor_.TakeInt<std::uint8_t>());
  }
  const bool put = opcode == kBinPut || opcode == kLongBinPut;
  DD2_DONE(put ? Put(index) : Get(index));
}

Result<bool> Machine::Named(std::uint8_t opcode) {
  switch (opcode) {
    case kGlobal: DD2_DONE(Global());
    case kReduce: DD2_DONE(Reduce());
    case kNewObj: DD2_DONE(NewObject());
    case kBuild: DD2_DONE(Build());
    case kBinPersId: {
      DD2_TRY_ASSIGN(auto identity, Pop(1));
      DD2_DONE(PushItems(PickleKind::kPersistent, std::move(identity)));
    }
    default: return false;
  }
}

Status Machine::Global() {
  DD2_TRY_ASSIGN(const std::string_view module, cursor_.TakeLine(kPickleNameMax));
  DD2_TRY_ASSIGN(const std::string_view name, cursor_.TakeLine(kPickleNameMax));
  const std::string full = std::string(module) + "." + std::string(name);
  if (!IsPrintable(full)) return Damaged("the pickle has an unreadable name");
  if (std::find(globals_.begin(), globals_.end(), full) == globals_.end()) {
    return Error(Code::kCorruption,
                 "the file wants to use Python's " + full +
                     ", which no weights need: refused, nothing of it was run. If you trust the "
                     "file, load it in Python and save its state_dict() alone");
  }
  return PushText(PickleKind::kGlobal, full);
}

Status Machine::Reduce() {
  DD2_TRY_ASSIGN(auto items, Pop(2));
  const PickleNode& callable = pickle_[items[0]];
  const PickleNode& arguments = pickle_[items[1]];
  if (callable.kind != PickleKind::kGlobal || arguments.kind != PickleKind::kTuple) {
    return Damaged("the pickle calls what has no name");
  }
  if (callable.text == "collections.OrderedDict" && arguments.items.empty()) {
    return PushItems(PickleKind::kDict, {});
  }
  return PushItems(PickleKind::kCall, std::move(items));
}

Status Machine::NewObject() {
  DD2_TRY_ASSIGN(auto items, Pop(2));
  const PickleNode& type = pickle_[items[0]];
  if (type.kind != PickleKind::kGlobal ||
      std::find(objects_.begin(), objects_.end(), type.text) == objects_.end()) {
    return Error(Code::kCorruption,
                 "the file makes an object of a class that no weights "
                 "need: refused" +
                     (type.text.empty() ? "" : " (" + type.text + ")"));
  }
  return PushItems(PickleKind::kObject, {items[0]});
}

// Attributes: of an OrderedDict the versions of modules, of an object all that it holds. Neither is
// wanted; the names in them were looked at all the same.
Status Machine::Build() {
  DD2_TRY(Pop(1));
  const bool takes =
      stack_.size() > Floor() && (pickle_[stack_.back()].kind == PickleKind::kDict ||
                                  pickle_[stack_.back()].kind == PickleKind::kObject);
  if (!takes) return Damaged("the pickle sets attributes of what has none");
  return {};
}

#undef DD2_DONE

}  // namespace

Result<Pickle> ReadPickle(std::span<const std::byte> bytes,
                          std::span<const std::string_view> globals,
                          std::span<const std::string_view> objects) {
  auto pickle = Machine(bytes, globals, objects).Run();
  if (!pickle && pickle.error().code() == Code::kCorruption && bytes.size() > kPickleBytesMax) {
    return pickle.error().Wrap("only the first " + std::to_string(kPickleBytesMax) +
                               " bytes of a pickle are read");
  }
  return pickle;
}

}  // namespace dd2

// What a bundle says in JSON, and its byte-level BPE tokenizer: as much of both as answer.cpp needs.
#pragma once

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

// What the caller can mend: printed in one line.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Refused(path + " cannot be read: check the path");
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void append_utf8(std::string& text, uint32_t code) {
  if (code < 0x80) {
    text += static_cast<char>(code);
  } else if (code < 0x800) {
    text += static_cast<char>(0xC0 | code >> 6);
    text += static_cast<char>(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    text += static_cast<char>(0xE0 | code >> 12);
    text += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    text += static_cast<char>(0x80 | (code & 0x3F));
  } else {
    text += static_cast<char>(0xF0 | code >> 18);
    text += static_cast<char>(0x80 | (code >> 12 & 0x3F));
    text += static_cast<char>(0x80 | (code >> 6 & 0x3F));
    text += static_cast<char>(0x80 | (code & 0x3F));
  }
}

// One value of a JSON file. What is not there, or of another kind, is refused by name.
class Json {
 public:
  static Json parse(const std::string& text, const std::string& name) {
    size_t at = 0;
    Json value = read(text, at, name, 0);
    skip(text, at);
    if (at != text.size()) throw Refused(name + " is not valid JSON: export again");
    return value;
  }

  const Json& operator[](const std::string& key) const {
    const auto found = members.find(key);
    if (found == members.end()) throw Refused("the bundle says nothing of " + key + ": export again");
    return found->second;
  }
  bool has(const std::string& key) const { return members.count(key) && members.at(key).kind != 'n'; }
  bool is(bool wanted) const { return kind == (wanted ? 't' : 'f'); }
  double number() const { return require('0'), value; }
  int64_t whole() const { return static_cast<int64_t>(number()); }
  const std::string& string() const { return require('"'), text; }

  char kind = 'n';  // n, t, f: null, true, false; 0: number; ": string; [ and {
  std::vector<Json> items;
  std::map<std::string, Json> members;

 private:
  double value = 0;
  std::string text;

  void require(char wanted) const {
    if (kind != wanted) throw Refused("the bundle holds a value of another kind than it should: export again");
  }
  static void skip(const std::string& s, size_t& at) {
    while (at < s.size() && (s[at] == ' ' || s[at] == '\n' || s[at] == '\r' || s[at] == '\t')) ++at;
  }
  static Json read(const std::string& s, size_t& at, const std::string& name, int depth) {
    const auto broken = [&] { return Refused(name + " is not valid JSON: export again"); };
    skip(s, at);
    if (at >= s.size() || depth > 64) throw broken();
    Json json;
    const char first = s[at];
    if (first == '{' || first == '[') {
      json.kind = first;
      const char end = first == '{' ? '}' : ']';
      skip(s, ++at);
      while (at < s.size() && s[at] != end) {
        Json item = read(s, at, name, depth + 1);
        skip(s, at);
        if (first == '{') {
          if (item.kind != '"' || at >= s.size() || s[at++] != ':') throw broken();
          json.members[item.text] = read(s, at, name, depth + 1);
          skip(s, at);
        } else {
          json.items.push_back(std::move(item));
        }
        if (at < s.size() && s[at] == ',') {
          skip(s, ++at);
        } else if (at >= s.size() || s[at] != end) {
          throw broken();
        }
      }
      if (at >= s.size()) throw broken();
      ++at;
    } else if (first == '"') {
      json.kind = '"';
      json.text = read_string(s, at, broken);
    } else if (s.compare(at, 4, "null") == 0 || s.compare(at, 4, "true") == 0 || s.compare(at, 5, "false") == 0) {
      json.kind = first;
      at += first == 'f' ? 5 : 4;
    } else {
      json.kind = '0';
      const size_t begin = at;
      at = std::min(s.find_first_not_of("+-.eE0123456789", at), s.size());
      if (at == begin) throw broken();
      json.value = std::stod(s.substr(begin, at - begin));
    }
    return json;
  }
  template <typename Broken>
  static std::string read_string(const std::string& s, size_t& at, const Broken& broken) {
    static const std::map<char, char> escapes = {{'n', '\n'}, {'t', '\t'}, {'r', '\r'}, {'b', '\b'}, {'f', '\f'}};
    const auto unit = [&] {
      if (at + 4 > s.size()) throw broken();
      const uint32_t code = static_cast<uint32_t>(std::stoul(s.substr(at, 4), nullptr, 16));
      at += 4;
      return code;
    };
    std::string text;
    for (++at; at < s.size() && s[at] != '"';) {
      const char c = s[at++];
      if (c != '\\') {
        text += c;
        continue;
      }
      if (at >= s.size()) throw broken();
      const char escape = s[at++];
      if (escape != 'u') {
        text += escapes.count(escape) ? escapes.at(escape) : escape;
        continue;
      }
      uint32_t code = unit();
      if (code >= 0xD800 && code < 0xDC00 && s.compare(at, 2, "\\u") == 0) {  // the first half of a pair
        at += 2;
        code = 0x10000 + ((code - 0xD800) << 10) + (unit() - 0xDC00);
      }
      append_utf8(text, code);
    }
    if (at >= s.size()) throw broken();
    ++at;
    return text;
  }
};

// Byte-pair encoding over bytes, as GPT-2 has it. Digits may stand alone. Another kind of tokenizer is refused.
class Tokenizer {
 public:
  explicit Tokenizer(const std::string& path) {
    const Json file = Json::parse(read_file(path), path);
    const Json& model = file["model"];
    const auto unlike = [&](const std::string& what) {
      return Refused(path + ": " + what + " is not read by this example");
    };
    if (model["type"].string() != "BPE") throw unlike("a " + model["type"].string() + " tokenizer");
    if (file.has("normalizer")) throw unlike("a normalizer");
    for (const char* option : {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"})
      if (model.has(option) && !(model[option].kind == '"' && model[option].string().empty())) throw unlike(option);
    for (const char* option : {"byte_fallback", "ignore_merges"})
      if (model.has(option) && model[option].is(true)) throw unlike(option);
    if (!file.has("decoder") || file["decoder"]["type"].string() != "ByteLevel")
      throw unlike("a decoder not over bytes");
    if (!file.has("pre_tokenizer")) throw unlike("text that is not split");
    const Json& split = file["pre_tokenizer"];
    const bool several = split["type"].string() == "Sequence";
    bool over_bytes = false;
    for (const Json& step : several ? split["pretokenizers"].items : std::vector<Json>{split}) {
      const std::string& type = step["type"].string();
      if (type == "Digits" && !over_bytes && step["individual_digits"].is(true)) {
        digits_alone_ = true;
      } else if (type == "ByteLevel" && step["add_prefix_space"].is(false) && step["use_regex"].is(true)) {
        over_bytes = true;
      } else {
        throw unlike("the pre-tokenizer " + type + " with these options");
      }
    }
    if (!over_bytes) throw unlike("text that is not split into bytes");

    name_bytes();
    for (const auto& [token, id] : model["vocab"].members) ids_[token] = id.whole(), tokens_[id.whole()] = token;
    for (const Json& token : file["added_tokens"].items) special_.insert(token["id"].whole());
    int64_t rank = 0;
    for (const Json& merge : model["merges"].items) {
      if (merge.kind == '[') {
        ranks_[{merge.items.at(0).string(), merge.items.at(1).string()}] = rank++;
      } else {  // older files write the two with a space between
        const size_t space = merge.string().find(' ');
        ranks_[{merge.string().substr(0, space), merge.string().substr(space + 1)}] = rank++;
      }
    }
  }

  // Plain text, a special token written out in it too. Without Unicode's tables only ASCII can be split into words.
  std::vector<int64_t> encode(const std::string& text) const {
    for (const unsigned char byte : text)
      if (byte >= 0x80) throw Refused("the question holds a character outside ASCII, which this example cannot split");
    std::vector<int64_t> ids;
    for (const std::string& stretch : stretches(text))
      for (const std::string& word : words(stretch)) encode_word(word, ids);
    return ids;
  }

  // Generated ids as bytes of UTF-8, without special tokens and the white space around.
  std::string decode(const std::vector<int64_t>& ids) const {
    std::string text;
    for (const int64_t id : ids) {
      if (special_.count(id) || !tokens_.count(id)) continue;
      const std::string& token = tokens_.at(id);
      for (size_t at = 0; at < token.size();) {
        const size_t length = (token[at] & 0x80) ? 2 : 1;  // every name of a byte is one or two bytes long
        text += static_cast<char>(bytes_.at(token.substr(at, length)));
        at += length;
      }
    }
    const size_t first = text.find_first_not_of(" \t\r\n");
    return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
  }

 private:
  bool digits_alone_ = false;
  std::array<std::string, 256> names_;
  std::map<std::string, int> bytes_;
  std::map<std::string, int64_t> ids_;
  std::map<int64_t, std::string> tokens_;
  std::set<int64_t> special_;
  std::map<std::pair<std::string, std::string>, int64_t> ranks_;

  // GPT-2's alphabet: a byte that can be printed is named by itself, the others by the code points from 256 on.
  void name_bytes() {
    uint32_t next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printed = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
      append_utf8(names_[byte], printed ? byte : next++);
      bytes_[names_[byte]] = byte;
    }
  }

  std::vector<std::string> stretches(const std::string& text) const {
    std::vector<std::string> parts;
    bool digit_before = true;
    for (const char c : text) {
      const bool digit = digits_alone_ && std::isdigit(static_cast<unsigned char>(c));
      if (digit || digit_before || parts.empty()) parts.emplace_back();
      parts.back() += c;
      digit_before = digit;
    }
    return parts;
  }

  // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  static std::vector<std::string> words(const std::string& s) {
    const auto kind = [&](size_t at) {
      if (at >= s.size()) return 'e';
      const unsigned char c = s[at];
      return std::isspace(c) ? 's' : std::isalpha(c) ? 'a' : std::isdigit(c) ? '0' : '.';
    };
    std::vector<std::string> parts;
    for (size_t at = 0; at < s.size();) {
      size_t end = at;
      for (const char* ending : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"})
        if (end == at && s.compare(at, std::char_traits<char>::length(ending), ending) == 0)
          end = at + std::char_traits<char>::length(ending);
      if (end == at) {
        const size_t begin = s[at] == ' ' && kind(at + 1) != 's' && kind(at + 1) != 'e' ? at + 1 : at;
        for (end = begin; kind(end) == kind(begin); ++end) {
        }
        // The last of several spaces belongs to the word behind it.
        if (kind(begin) == 's' && kind(end) != 'e' && end - at > 1) --end;
      }
      parts.push_back(s.substr(at, end - at));
      at = end;
    }
    return parts;
  }

  void encode_word(const std::string& word, std::vector<int64_t>& ids) const {
    std::vector<std::string> symbols;
    for (const unsigned char byte : word) symbols.push_back(names_[byte]);
    while (true) {  // the earliest merge first
      size_t best = 0;
      int64_t lowest = std::numeric_limits<int64_t>::max();
      for (size_t i = 0; i + 1 < symbols.size(); ++i) {
        const auto rank = ranks_.find({symbols[i], symbols[i + 1]});
        if (rank != ranks_.end() && rank->second < lowest) best = i, lowest = rank->second;
      }
      if (lowest == std::numeric_limits<int64_t>::max()) break;
      symbols[best] += symbols[best + 1];
      symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
    for (const std::string& symbol : symbols)
      if (ids_.count(symbol)) ids.push_back(ids_.at(symbol));
  }
};

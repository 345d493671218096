// A question about a picture, answered from a bundle of `mvlm export` with onnxruntime's C API alone.
//
//     answer BUNDLE PICTURE.ppm "what time of day is it?" SCALE [MOST_TOKENS]
//
// Greedy, at a scale that is named: the router's features are Python's. The picture is a binary PPM of the size that
// the model reads (convert picture.png -resize 96x96! picture.ppm), so no image library is needed and how it is resized
// is the caller's. For bundles of the target ort-cpu, their tokenizer a byte-level BPE. The hashes of the files are not
// checked: Python's runtime does. The answer goes to stdout, its ids to stderr.
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "text.hpp"

static const OrtApi* ort = nullptr;

static void check(OrtStatus* status) {
  if (!status) return;
  const std::string message = ort->GetErrorMessage(status);
  ort->ReleaseStatus(status);
  throw Refused("onnxruntime: " + message.substr(0, message.find('\n')));
}

struct Release {
  void operator()(OrtEnv* it) const { ort->ReleaseEnv(it); }
  void operator()(OrtSession* it) const { ort->ReleaseSession(it); }
  void operator()(OrtSessionOptions* it) const { ort->ReleaseSessionOptions(it); }
  void operator()(OrtMemoryInfo* it) const { ort->ReleaseMemoryInfo(it); }
  void operator()(OrtValue* it) const { ort->ReleaseValue(it); }
  void operator()(OrtTensorTypeAndShapeInfo* it) const { ort->ReleaseTensorTypeAndShapeInfo(it); }
};
template <typename T>
using Held = std::unique_ptr<T, Release>;

// A tensor over memory that the caller keeps: onnxruntime reads it, or writes into it.
template <typename T>
Held<OrtValue> tensor(std::vector<T>& data, const std::vector<int64_t>& shape, ONNXTensorElementDataType type) {
  OrtMemoryInfo* memory = nullptr;
  check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  const Held<OrtMemoryInfo> held(memory);
  OrtValue* value = nullptr;
  check(ort->CreateTensorWithDataAsOrtValue(memory, data.data(), data.size() * sizeof(T), shape.data(), shape.size(),
                                            type, &value));
  return Held<OrtValue>(value);
}

static Held<OrtValue> floats(std::vector<float>& data, const std::vector<int64_t>& shape) {
  return tensor(data, shape, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
}

static std::vector<float> values_of(OrtValue* value, std::vector<int64_t>* shape = nullptr) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(ort->GetTensorTypeAndShape(value, &info));
  const Held<OrtTensorTypeAndShapeInfo> held(info);
  size_t rank = 0, count = 0;
  check(ort->GetDimensionsCount(info, &rank));
  std::vector<int64_t> dimensions(rank);
  check(ort->GetDimensions(info, dimensions.data(), rank));
  check(ort->GetTensorShapeElementCount(info, &count));
  void* data = nullptr;
  check(ort->GetTensorMutableData(value, &data));
  if (shape) *shape = dimensions;
  return {static_cast<float*>(data), static_cast<float*>(data) + count};
}

class Graph {
 public:
  Graph(OrtEnv* env, const std::string& folder, const Json& facts) : facts(facts) {
    OrtSessionOptions* options = nullptr;
    check(ort->CreateSessionOptions(&options));
    const Held<OrtSessionOptions> held(options);
    OrtSession* session = nullptr;
    check(ort->CreateSession(env, (folder + "/" + facts["file"].string()).c_str(), options, &session));
    session_.reset(session);
  }

  // Outputs that are null are allocated.
  void run(const std::vector<std::string>& inputs, const std::vector<OrtValue*>& fed,
           const std::vector<std::string>& outputs, std::vector<OrtValue*>& made) const {
    const auto named = [](const std::vector<std::string>& names) {
      std::vector<const char*> pointers;
      for (const std::string& name : names) pointers.push_back(name.c_str());
      return pointers;
    };
    check(ort->Run(session_.get(), nullptr, named(inputs).data(), fed.data(), fed.size(), named(outputs).data(),
                   made.size(), made.data()));
  }

  // One input, one output, by the roles that the bundle gives them.
  std::vector<float> run(const char* from, std::vector<float>& data, std::vector<int64_t>& shape,
                         const char* to) const {
    const Held<OrtValue> input = floats(data, shape);
    std::vector<OrtValue*> made = {nullptr};
    run({facts["inputs"][from].string()}, {input.get()}, {facts["outputs"][to].string()}, made);
    const Held<OrtValue> output(made[0]);
    return values_of(output.get(), &shape);
  }

  const Json& facts;

 private:
  Held<OrtSession> session_;
};

// (3, size_px, size_px), normalised as the runtime's image.py does it.
static std::vector<float> read_picture(const std::string& path, const Json& spec) {
  const std::string bytes = read_file(path);
  const size_t side = static_cast<size_t>(spec["size_px"].whole()), count = side * side;
  const std::string size = std::to_string(side);
  int width = 0, height = 0, most = 0, header = 0;
  if (std::sscanf(bytes.c_str(), "P6 %d %d %d%n", &width, &height, &most, &header) != 3 || most != 255)
    throw Refused(path + " is no binary PPM of 8 bits: convert it");
  if (width != static_cast<int>(side) || height != static_cast<int>(side))
    throw Refused(path + " is " + std::to_string(width) + " x " + std::to_string(height) + ": resize it to " + size +
                  " x " + size);
  const size_t begin = static_cast<size_t>(header) + 1;
  if (bytes.size() < begin + 3 * count) throw Refused(path + " is cut short: save it anew");
  std::vector<float> pixels(3 * count);
  for (size_t channel = 0; channel < 3; ++channel) {
    const float mean = static_cast<float>(spec["mean"].items.at(channel).number());
    const float std = static_cast<float>(spec["std"].items.at(channel).number());
    for (size_t i = 0; i < count; ++i) {
      const auto byte = static_cast<unsigned char>(bytes[begin + 3 * i + channel]);
      pixels[channel * count + i] = (static_cast<float>(byte) * (1.0f / 255.0f) - mean) / std;
    }
  }
  return pixels;
}

// The language model's table (V, D): rows are read from the file as they are needed.
class Embedding {
 public:
  Embedding(const std::string& folder, const Json& place)
      : file_(folder + "/" + place["file"].string(), std::ios::binary), offset_(place["offset"].whole()),
        width(place["shape"].items.at(1).whole()), rows_(place["shape"].items.at(0).whole()) {
    if (!file_) throw Refused(folder + "/" + place["file"].string() + " cannot be read: export again");
    if (place["dtype"].string() != "float32") throw Refused("this example reads embeddings in float32 alone");
  }
  void append(int64_t id, std::vector<float>& to) {
    if (id < 0 || id >= rows_) throw Refused("the bundle names a token that it has no embedding of: export again");
    const size_t end = to.size();
    to.resize(end + static_cast<size_t>(width));
    file_.seekg(offset_ + id * width * static_cast<int64_t>(sizeof(float)));
    file_.read(reinterpret_cast<char*>(&to[end]), width * static_cast<int64_t>(sizeof(float)));
    if (!file_) throw Refused("the embedding table is cut short: export again");
  }

 private:
  std::ifstream file_;
  int64_t offset_;

 public:
  const int64_t width;

 private:
  int64_t rows_;
};

// The decoder with one cache that it reads and writes in place.
class Decoder {
 public:
  Decoder(OrtEnv* env, const std::string& folder, const Json& facts, int64_t width, int64_t positions)
      : decode_(env, folder, facts["graph"]), width_(width) {
    if (facts["cache"].string() != "in place" || facts["cache_dtype"].string() != "float32")
      throw Refused("this example runs bundles of the target ort-cpu alone: export with --target ort-cpu");
    if (facts.has("prefill")) prefill_ = std::make_unique<Graph>(env, folder, facts["prefill"]);
    const int64_t heads = facts["kv_heads"].whole(), head = facts["head_dim"].whole();
    for (const Json& name : facts["past"].items) past_.push_back(name.string());
    for (const Json& name : facts["present"].items) present_.push_back(name.string());
    for (size_t i = 0; i < past_.size(); ++i) {
      buffers_.emplace_back(static_cast<size_t>(heads * positions * head));
      cache_.push_back(floats(buffers_.back(), {1, heads, positions, head}));
    }
  }

  // Reads S more positions, (S, D): logits (V,) of the last.
  std::vector<float> step(std::vector<float>& embeddings) {
    const int64_t steps = static_cast<int64_t>(embeddings.size()) / width_;
    const Graph& graph = steps > 1 && prefill_ ? *prefill_ : decode_;
    used_ += steps;
    std::vector<int32_t> total = {static_cast<int32_t>(used_)}, last = {total[0] - 1};
    std::map<std::string, Held<OrtValue>> roles;
    roles["inputs_embeds"] = floats(embeddings, {1, steps, width_});
    roles["seqlens_k"] = tensor(last, {1}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32);
    roles["total_sequence_length"] = tensor(total, {}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32);
    std::vector<std::string> inputs = past_, outputs = present_;
    std::vector<OrtValue*> fed, made;
    for (const auto& values : cache_) fed.push_back(values.get()), made.push_back(values.get());
    for (const auto& [role, name] : graph.facts["inputs"].members) {
      if (!roles.count(role)) throw Refused("the decoder asks for " + role + ", which this example does not give");
      inputs.push_back(name.string());
      fed.push_back(roles[role].get());
    }
    outputs.push_back(graph.facts["outputs"]["logits"].string());
    made.push_back(nullptr);
    graph.run(inputs, fed, outputs, made);
    const Held<OrtValue> logits(made.back());
    return values_of(logits.get());
  }

 private:
  Graph decode_;
  std::unique_ptr<Graph> prefill_;
  int64_t width_, used_ = 0;
  std::vector<std::string> past_, present_;
  std::vector<std::vector<float>> buffers_;
  std::vector<Held<OrtValue>> cache_;
};

// The picture at one scale: (m, D).
static std::vector<float> visual_tokens(OrtEnv* env, const std::string& folder, const Json& bundle,
                                        const std::string& picture, const std::string& scale) {
  const Json& connectors = bundle["graphs"]["connectors"];
  if (!connectors.has(scale)) {
    std::string offered;
    for (const Json& m : bundle["scales"].items) offered += (offered.empty() ? "" : ", ") + std::to_string(m.whole());
    throw Refused("this bundle has no scale " + scale + ": name one of " + offered);
  }
  std::vector<float> pixels = read_picture(picture, bundle["image"]);
  const int64_t side = bundle["image"]["size_px"].whole();
  std::vector<int64_t> shape = {1, 3, side, side};
  const Graph vision(env, folder, bundle["graphs"]["vision"]);
  std::vector<float> values = vision.run("pixel_values", pixels, shape, "values");  // (1, P, ·)
  return Graph(env, folder, connectors[scale]).run("values", values, shape, "tokens");
}

static void answer(const std::string& folder, const std::string& picture, const std::string& question,
                   const std::string& scale, int64_t most) {
  const Json bundle = Json::parse(read_file(folder + "/bundle.json"), folder + "/bundle.json");
  const Tokenizer tokenizer(folder + "/" + bundle["tokenizer"].string());
  Embedding table(folder, bundle["embedding"]);
  OrtEnv* env = nullptr;
  check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "mvlm", &env));
  const Held<OrtEnv> held(env);

  std::vector<float> prompt;  // (S, D)
  for (const Json& part : bundle["prompt"].items) {
    if (part.has("image")) {
      const std::vector<float> tokens = visual_tokens(env, folder, bundle, picture, scale);
      prompt.insert(prompt.end(), tokens.begin(), tokens.end());
    } else if (part.has("question")) {
      const Json& around = part["question"];
      for (const int64_t id : tokenizer.encode(around["before"].string() + question + around["after"].string()))
        table.append(id, prompt);
    } else {
      for (const Json& id : part["ids"].items) table.append(id.whole(), prompt);
    }
  }
  const int64_t positions = static_cast<int64_t>(prompt.size()) / table.width + most;
  if (positions > bundle["max_length"].whole())
    throw Refused("question, picture and answer need " + std::to_string(positions) + " positions, and the decoder" +
                  " has " + std::to_string(bundle["max_length"].whole()) + ": ask in fewer words, or for a shorter answer");

  std::set<int64_t> stops;
  for (const Json& id : bundle["stop_ids"].items) stops.insert(id.whole());
  Decoder decoder(env, folder, bundle["graphs"]["decoder"], table.width, positions);
  std::vector<int64_t> ids;
  std::vector<float> next = std::move(prompt);
  while (static_cast<int64_t>(ids.size()) < most) {
    const std::vector<float> logits = decoder.step(next);
    const int64_t token = std::max_element(logits.begin(), logits.end()) - logits.begin();
    if (stops.count(token)) break;
    ids.push_back(token);
    next.clear();
    table.append(token, next);
  }
  std::printf("%s\n", tokenizer.decode(ids).c_str());
  std::fprintf(stderr, "ids");
  for (const int64_t id : ids) std::fprintf(stderr, " %lld", static_cast<long long>(id));
  std::fprintf(stderr, "\n");
}

int main(int count, char** arguments) {
  if (count != 5 && count != 6) {
    std::fprintf(stderr, "usage: answer BUNDLE PICTURE.ppm QUESTION SCALE [MOST_TOKENS]\n");
    return 2;
  }
  try {
    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (!ort) throw Refused("this onnxruntime is older than the headers that the example was built with");
    const long most = count == 6 ? std::strtol(arguments[5], nullptr, 10) : 32;
    if (most < 1) throw Refused("an answer of less than one token is none: allow at least 1");
    answer(arguments[1], arguments[2], arguments[3], arguments[4], most);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
  return 0;
}

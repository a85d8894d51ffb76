// byte_stream.hpp: how saved states are written down: trivially copyable values and length-prefixed byte strings,
// in order, in the byte order of x86-64 and AArch64 Linux.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace fastrl {

class ByteWriter {
 public:
  template <typename T>
    requires std::is_trivially_copyable_v<T>
  void put(const T& value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  void put_bytes(std::string_view bytes) {
    put<std::uint64_t>(bytes.size());
    bytes_.append(bytes);
  }
  void put_bytes(std::span<const std::uint8_t> bytes) {
    put_bytes(std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  }
  std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

// Throws std::invalid_argument where the bytes end too early: the caller turns that into "damaged state".
class ByteReader {
 public:
  explicit ByteReader(std::string_view bytes) : rest_(bytes) {}

  template <typename T>
    requires std::is_trivially_copyable_v<T>
  T get() {
    T value;
    std::memcpy(&value, advance(sizeof(value)).data(), sizeof(value));
    return value;
  }
  std::string_view get_bytes() { return advance(get<std::uint64_t>()); }
  std::span<const std::uint8_t> get_bytes(std::size_t expected) {
    const std::string_view bytes = get_bytes();
    if (bytes.size() != expected) throw std::invalid_argument("a part has an unexpected length");
    return {reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()};
  }
  bool empty() const { return rest_.empty(); }

 private:
  std::string_view advance(std::uint64_t count) {
    if (count > rest_.size()) throw std::invalid_argument("the bytes end too early");
    const std::string_view part = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return part;
  }
  std::string_view rest_;
};

}  // namespace fastrl

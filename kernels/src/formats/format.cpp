#include "formats/format.h"

#include <string.h>

#include "formats/all.h"

namespace sx {
namespace {

constexpr int32_t kMaxType = 64;

template <class F>
struct Floats {
    static void decode(const uint8_t *blocks, uint32_t cols, float *out) {
        for (uint32_t c = 0; c < cols; c++) out[c] = F::load(blocks + static_cast<size_t>(c) * F::kBlockBytes);
    }
    static void quantise(const float *x, uint32_t cols, uint8_t *tile, uint32_t r) {
        for (uint32_t c = 0; c < cols; c++) F::store(x[c], cell(tile, r, c));
    }
    static void pack(const uint8_t *blocks, uint32_t cols, uint8_t *tile, uint32_t r) {
        for (uint32_t c = 0; c < cols; c++)
            memcpy(cell(tile, r, c), blocks + static_cast<size_t>(c) * F::kBlockBytes, F::kBlockBytes);
    }
    static void unpack(const uint8_t *tile, uint32_t r, uint32_t cols, float *out) {
        for (uint32_t c = 0; c < cols; c++) out[c] = F::load(cell(const_cast<uint8_t *>(tile), r, c));
    }
    static uint8_t *cell(uint8_t *tile, uint32_t r, uint32_t c) {
        return tile + (static_cast<size_t>(c) * kTileRows + r) * F::kBlockBytes;
    }
};

template <class F>
struct Blocks {
    static Group<typename F::Scales> at(const uint8_t *blocks, uint32_t g) {
        constexpr uint32_t kGroups = F::kBlock / kGroup;
        return F::read(blocks + static_cast<size_t>(g / kGroups) * F::kBlockBytes, g % kGroups);
    }
    static void decode(const uint8_t *blocks, uint32_t cols, float *out) {
        for (uint32_t g = 0; g < cols / kGroup; g++) to_floats<F>(at(blocks, g), out + g * kGroup);
    }
    static void pack(const uint8_t *blocks, uint32_t cols, uint8_t *tile, uint32_t r) {
        for (uint32_t g = 0; g < cols / kGroup; g++) write_packed<F>(at(blocks, g), tile, g, r);
    }
    static void quantise(const float *x, uint32_t cols, uint8_t *tile, uint32_t r) {
        for (uint32_t g = 0; g < cols / kGroup; g++) write_packed<F>(F::quantise(x + g * kGroup), tile, g, r);
    }
    static void unpack(const uint8_t *tile, uint32_t r, uint32_t cols, float *out) {
        for (uint32_t g = 0; g < cols / kGroup; g++) to_floats<F>(read_packed<F>(tile, g, r), out + g * kGroup);
    }
};

template <class F>
constexpr auto quantises(int) -> decltype(F::quantise(nullptr), true) {
    return true;
}
template <class F>
constexpr bool quantises(...) {
    return false;
}

template <class F>
constexpr Format describe(uint32_t index) {
    Format f{F::kType, index,   F::kName, F::kQuantised, F::kBlock, F::kBlockBytes, 1, F::kBlockBytes * kTileRows,
             nullptr,  nullptr, nullptr,  nullptr};
    if constexpr (F::kQuantised) {
        using Rows = Blocks<F>;
        f.step = kSuperColumns<F>, f.step_bytes = kSuperBytes<F>;
        f.decode = Rows::decode, f.pack = Rows::pack, f.unpack = Rows::unpack;
        if constexpr (quantises<F>(0)) f.quantise = Rows::quantise;
    } else {
        using Rows = Floats<F>;
        f.decode = Rows::decode, f.pack = Rows::pack, f.quantise = Rows::quantise, f.unpack = Rows::unpack;
    }
    return f;
}

template <class F>
void decode_source(const uint8_t *blocks, uint32_t cols, float *out) {
    constexpr uint32_t kGroups = F::kBlock / kGroup;
    for (uint32_t g = 0; g < cols / kGroup; g++)
        F::decode(blocks + static_cast<size_t>(g / kGroups) * F::kBlockBytes, g % kGroups, out + g * kGroup);
}

template <class F>
constexpr Format describe_source() {
    return {F::kType, 0, F::kName, true, F::kBlock, F::kBlockBytes, 0, 0, decode_source<F>, nullptr, nullptr, nullptr};
}

constexpr uint32_t kAll = kFormats + Sources::kCount;

struct Table {
    Format formats[kAll];
    int8_t by_type[kMaxType];
};

template <class... F, class... S>
constexpr Table make_table(List<F...>, List<S...>) {
    Table table{};
    uint32_t n = 0;
    ((table.formats[n] = describe<F>(n), n++), ...);
    ((table.formats[n++] = describe_source<S>()), ...);
    for (int8_t &i : table.by_type) i = -1;
    for (uint32_t i = 0; i < kAll; i++) table.by_type[table.formats[i].type] = static_cast<int8_t>(i);
    return table;
}

constexpr Table kTable = make_table(Formats(), Sources());

const Format &known(int32_t type) { return kTable.formats[kTable.by_type[type]]; }

}  // namespace

const Format *find_format(int32_t type) {
    return type < 0 || type >= kMaxType || kTable.by_type[type] < 0 ? nullptr : &known(type);
}

bool is_quantised(int32_t type) {
    const Format *format = find_format(type);
    return format && format->quantised;
}

uint32_t padded_cols(int32_t type, uint32_t cols) { return round_up(cols, known(type).step); }

size_t tile_bytes(int32_t type, uint32_t cols) {
    return static_cast<size_t>(padded_cols(type, cols) / known(type).step) * known(type).step_bytes;
}

size_t source_row_bytes(int32_t type, uint32_t cols) {
    return static_cast<size_t>(cols / known(type).block) * known(type).block_bytes;
}

void decode_row(int32_t type, const void *blocks, uint32_t cols, float *out) {
    known(type).decode(static_cast<const uint8_t *>(blocks), cols, out);
}

void pack_tile(const PackJob &job, uint32_t tile, uint8_t *out, float *scratch) {
    memset(out, 0, tile_bytes(job.type, job.cols));
    const Format &format = known(job.type);
    const size_t row_bytes = source_row_bytes(job.src_type, job.cols);
    for (uint32_t r = 0; r < kTileRows && tile * kTileRows + r < job.rows; r++) {
        const uint8_t *source = job.data + (static_cast<size_t>(tile) * kTileRows + r) * row_bytes;
        if (job.src_type == job.type) {
            format.pack(source, job.cols, out, r);
            continue;
        }
        decode_row(job.src_type, source, job.cols, scratch);
        format.quantise(scratch, job.cols, out, r);
    }
}

void unpack_row(int32_t type, const uint8_t *tile, uint32_t row, uint32_t cols, float *out) {
    known(type).unpack(tile, row, cols, out);
}

}  // namespace sx

// Passes over channels-last images that read a float once and write its 8-bit code. See passes.py for what they compute.
// Compiled without any flag that reorders float arithmetic: x / delta is a division, and halves go to the even neighbour.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

struct Grid {
    float delta, low, high;
};

// exp(x) to about one unit in the last place (the polynomial of Cephes' expf).
inline float exponential(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
    const float n = std::nearbyint(x * 1.44269504088896341f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const float e = p * r * r + r + 1.0f;
    const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return e * power;
}

// q[c] = clamp(round(x[c] / delta), low, high) - low; returns the sum of q.
int32_t quantize(const float* __restrict x, int64_t n, const Grid& grid, uint8_t* __restrict q) {
    const float delta = grid.delta, low = grid.low, high = grid.high;
    int32_t sum = 0;
    for (int64_t c = 0; c < n; ++c) {
        const float k = std::min(std::max(std::nearbyint(x[c] / delta), low), high) - low;
        const int32_t code = static_cast<int32_t>(k);
        q[c] = static_cast<uint8_t>(code);
        sum += code;
    }
    return sum;
}

// Calls f(begin, end) on parts of 0 .. n - 1.
template <typename F>
void in_parts(int64_t n, int threads, const F& f) {
    const int64_t parts = std::min<int64_t>(n, std::max(threads, 1));
    std::vector<std::thread> others;
    for (int64_t k = 1; k < parts; ++k) others.emplace_back([&, k] { f(n * k / parts, n * (k + 1) / parts); });
    f(0, parts ? n / parts : 0);
    for (auto& other : others) other.join();
}

// The largest number of pixels whose values fill about a kilobyte: loops over so many values at a time are long enough.
inline int64_t tile_of(int64_t channels, int64_t pixels) {
    return std::max<int64_t>(1, std::min<int64_t>(pixels, 512 / channels));
}

// s += x + add and t += (x + add)^2, n values each.
inline void accumulate(const float* __restrict x, const float* __restrict add, int64_t n, float* __restrict s,
                       float* __restrict t) {
    for (int64_t i = 0; i < n; ++i) {
        const float v = x[i] + add[i];
        s[i] += v;
        t[i] += v * v;
    }
}

// y = silu(scale (x + add) + shift), n values each.
inline void activate(const float* __restrict x, const float* __restrict add, const float* __restrict scale,
                     const float* __restrict shift, int64_t n, float* __restrict y) {
    for (int64_t i = 0; i < n; ++i) {
        const float v = (x[i] + add[i]) * scale[i] + shift[i];
        y[i] = v / (1.0f + exponential(-v));
    }
}

// Repeats the first `channels` values through the whole table.
void repeat(std::vector<float>& table, int64_t channels) {
    for (size_t i = channels; i < table.size(); ++i) table[i] = table[i - channels];
}

// GroupNorm of one image as y = scale[c] (x + add) + shift[c]; tables of whole tiles.
void normalization(const float* x, const std::vector<float>& add, const float* weight, const float* bias, int64_t pixels,
                   int64_t channels, int64_t groups, double eps, std::vector<float>& scale, std::vector<float>& shift) {
    constexpr int64_t rows = 64;  // tiles that are summed in float32
    const int64_t size = static_cast<int64_t>(add.size()), total = pixels * channels;
    std::vector<double> sum(channels), square(channels);
    std::vector<float> s(size), t(size);
    for (int64_t start = 0; start < total; start += rows * size) {
        std::fill(s.begin(), s.end(), 0.0f);
        std::fill(t.begin(), t.end(), 0.0f);
        for (int64_t i = start; i < std::min(total, start + rows * size); i += size)
            accumulate(x + i, add.data(), std::min(size, total - i), s.data(), t.data());
        for (int64_t i = 0; i < size; ++i) sum[i % channels] += s[i], square[i % channels] += t[i];
    }
    const int64_t width = channels / groups;
    for (int64_t g = 0; g < groups; ++g) {
        double m = 0, v = 0;
        for (int64_t c = g * width; c < (g + 1) * width; ++c) m += sum[c], v += square[c];
        m /= static_cast<double>(width * pixels);
        v = std::max(v / static_cast<double>(width * pixels) - m * m, 0.0);
        const double inverse = 1.0 / std::sqrt(v + eps);
        for (int64_t c = g * width; c < (g + 1) * width; ++c) {
            scale[c] = static_cast<float>(inverse * weight[c]);
            shift[c] = static_cast<float>(bias[c] - m * inverse * weight[c]);
        }
    }
    repeat(scale, channels);
    repeat(shift, channels);
}

}  // namespace

extern "C" {

// Codes of n rows of `channels` values, `stride` apart.
void iec_quantize(const float* x, int64_t n, int64_t channels, int64_t stride, float delta, float low, float high, uint8_t* q,
                  int32_t* sums, int threads) {
    const Grid grid{delta, low, high};
    in_parts(n, threads, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) sums[r] = quantize(x + r * stride, channels, grid, q + r * channels);
    });
}

// clamp(round(x / delta), low, high) delta.
void iec_round_to_grid(const float* x, int64_t n, float delta, float low, float high, float* y, int threads) {
    in_parts(n, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) y[i] = std::min(std::max(std::nearbyint(x[i] / delta), low), high) * delta;
    });
}

// y[o] += factor[o] (sum over the window of (sums - shift)), one y a place of the output. sizes: images, height and width of the
// sums, then of the window: its size, stride, padding and dilation (two each), then height, width and channels of y.
void iec_add_offset(const int32_t* sums, const int64_t* sizes, int32_t shift, const float* factor, float* y, int threads) {
    const int64_t images = sizes[0], height = sizes[1], width = sizes[2], *window = sizes + 3;
    const int64_t high = sizes[11], wide = sizes[12], channels = sizes[13];
    in_parts(images * high * wide, threads, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
            const int64_t b = r / (high * wide), top = r / wide % high * window[2] - window[4];
            const int64_t left = r % wide * window[3] - window[5];
            int32_t sum = 0;
            for (int64_t i = 0; i < window[0]; ++i) {
                const int64_t h = top + i * window[6];
                if (h < 0 || h >= height) continue;
                for (int64_t j = 0; j < window[1]; ++j) {
                    const int64_t w = left + j * window[7];
                    if (w >= 0 && w < width) sum += sums[(b * height + h) * width + w] - shift;
                }
            }
            const float total = static_cast<float>(sum);
            float* __restrict own = y + r * channels;
            for (int64_t o = 0; o < channels; ++o) own[o] += total * factor[o];
        }
    });
}

// Codes of silu(group_norm(x + add)), of channels [0, split) on the first grid and of the others on the second.
void iec_norm_silu_quantize(const float* x, const float* add, const float* weight, const float* bias, int64_t images,
                            int64_t pixels, int64_t channels, int64_t split, int64_t groups, double eps, const float* grids,
                            uint8_t* q0, uint8_t* q1, int32_t* sums0, int32_t* sums1, int threads) {
    const Grid first{grids[0], grids[1], grids[2]}, second{grids[3], grids[4], grids[5]};
    const int64_t tile = tile_of(channels, pixels), size = tile * channels;
    in_parts(images, threads, [&](int64_t begin, int64_t end) {
        std::vector<float> scale(size), shift(size), own(size), y(size);
        for (int64_t b = begin; b < end; ++b) {
            const float* image = x + b * pixels * channels;
            if (add != nullptr) {
                std::copy(add + b * channels, add + (b + 1) * channels, own.begin());
                repeat(own, channels);
            }
            normalization(image, own, weight, bias, pixels, channels, groups, eps, scale, shift);
            for (int64_t start = 0; start < pixels; start += tile) {
                const int64_t n = std::min(tile, pixels - start);
                activate(image + start * channels, own.data(), scale.data(), shift.data(), n * channels, y.data());
                for (int64_t p = 0; p < n; ++p) {
                    const int64_t r = b * pixels + start + p;
                    const float* row = y.data() + p * channels;
                    sums0[r] = quantize(row, split, first, q0 + r * split);
                    if (split < channels)
                        sums1[r] = quantize(row + split, channels - split, second, q1 + r * (channels - split));
                }
            }
        }
    });
}
}

// From mask logits and class probabilities to a label map, one thread a pixel, without the dense scores.
//
//     label(y, x) = argmax over n of  sum over q of  probability(q, n) * sigmoid(mask q at (y, x))
//
// The mask at a pixel of the output is bilinear twice, as in the reference: mask -> canvas, cut to the part that holds
// the picture, -> output. Both resizes of an axis are folded into at most four taps. Of equal scores the first class
// wins. The same file is plain C++: without a CUDA compiler it is the function label_map_on_host.

#if defined(__CUDACC__)
#define EBSEG_FUNCTION static __device__ __forceinline__
#define EBSEG_UNROLL _Pragma("unroll")
#else
#include <cmath>
#define EBSEG_FUNCTION static inline
#define EBSEG_UNROLL
#endif

namespace {

// Classes scored at once: their sums stay in registers, because every loop over them is unrolled.
constexpr int kClasses = 16;
// A finite float's greatest value: neither NaN nor infinity is at most this in magnitude.
constexpr float kLargest = 3.402823466e38f;

struct Shape {
  int queries, mask_height, mask_width;    // mask logits (queries, mask_height, mask_width)
  int classes;                             // probabilities (queries, classes)
  int canvas_height, canvas_width;         // what the masks cover
  int valid_height, valid_width;           // part of the canvas that holds the picture
  int output_height, output_width;         // labels (output_height, output_width)
};

// Where one coordinate of the output reads the mask, and how much of each place. Weights sum to 1.
struct Taps {
  int count;
  int place[4];
  float weight[4];
};

// Bilinear with half-pixel centres: two neighbours of position `at` of `target` in `source`, and the second's share.
// In double: in float, coordinate 4000 has steps of 2e-4, and that much of a mask's slope would be lost.
EBSEG_FUNCTION double neighbours(int at, int source, int target, int *first, int *second) {
  double centre = (at + 0.5) * ((double)source / (double)target) - 0.5;
  if (centre < 0.0) centre = 0.0;
  *first = (int)centre < source - 1 ? (int)centre : source - 1;
  *second = *first + 1 < source - 1 ? *first + 1 : source - 1;
  return *second > *first ? centre - *first : 0.0;
}

EBSEG_FUNCTION Taps taps_of(int at, int mask, int canvas, int valid, int output) {
  int on_canvas[2];
  double share[2] = {1.0, 0.0};
  if (output == valid) {
    on_canvas[0] = on_canvas[1] = at;
  } else {
    share[1] = neighbours(at, valid, output, &on_canvas[0], &on_canvas[1]);
    share[0] = 1.0 - share[1];
  }
  Taps taps;
  taps.count = 0;
  double weight[4];
  for (int i = 0; i < 2; ++i) {
    int place[2];
    const double second = neighbours(on_canvas[i], mask, canvas, &place[0], &place[1]);
    for (int j = 0; j < 2; ++j) {
      const double part = share[i] * (j == 0 ? 1.0 - second : second);
      if (part == 0.0) continue;
      int k = 0;
      while (k < taps.count && taps.place[k] != place[j]) ++k;
      if (k == taps.count) {
        taps.place[k] = place[j];
        weight[k] = 0.0;
        ++taps.count;
      }
      weight[k] += part;
    }
  }
  for (int k = 0; k < taps.count; ++k) taps.weight[k] = (float)weight[k];
  return taps;
}

// The label of one pixel. `sigmoids` has room for `queries` floats, `stride` apart. Sets *broken if a number is NaN
// or infinite: such a pixel has no winner.
EBSEG_FUNCTION int label_of(const float *masks, const float *probabilities, const Shape &shape, int y, int x,
                            float *sigmoids, int stride, int *broken) {
  const Taps rows = taps_of(y, shape.mask_height, shape.canvas_height, shape.valid_height, shape.output_height);
  const Taps columns = taps_of(x, shape.mask_width, shape.canvas_width, shape.valid_width, shape.output_width);
  for (int q = 0; q < shape.queries; ++q) {
    const float *mask = masks + (long long)q * shape.mask_height * shape.mask_width;
    float value = 0.0f;
    for (int r = 0; r < rows.count; ++r) {
      const float *row = mask + (long long)rows.place[r] * shape.mask_width;
      float along = 0.0f;
      for (int c = 0; c < columns.count; ++c) along += columns.weight[c] * row[columns.place[c]];
      value += rows.weight[r] * along;
    }
    if (!(value <= kLargest && value >= -kLargest)) *broken = 1;
    sigmoids[q * stride] = 1.0f / (1.0f + expf(-value));
  }
  int winner = 0;
  float best = -1.0f;  // scores are never negative
  for (int first = 0; first < shape.classes; first += kClasses) {
    const int count = shape.classes - first < kClasses ? shape.classes - first : kClasses;
    float scores[kClasses];
    EBSEG_UNROLL
    for (int k = 0; k < kClasses; ++k) scores[k] = 0.0f;
    for (int q = 0; q < shape.queries; ++q) {
      const float sigmoid = sigmoids[q * stride];
      const float *row = probabilities + (long long)q * shape.classes + first;
      if (count == kClasses) {
        EBSEG_UNROLL
        for (int k = 0; k < kClasses; ++k) scores[k] += row[k] * sigmoid;
      } else {
        EBSEG_UNROLL
        for (int k = 0; k < kClasses; ++k)
          if (k < count) scores[k] += row[k] * sigmoid;
      }
    }
    EBSEG_UNROLL
    for (int k = 0; k < kClasses; ++k) {
      if (!(scores[k] <= kLargest)) *broken = 1;
      if (k < count && scores[k] > best) {
        best = scores[k];
        winner = first + k;
      }
    }
  }
  return winner;
}

}  // namespace

#if defined(__CUDACC__)

// Grid (ceil(output_width / threads), output_height), one row of threads a block, and 4 * queries * threads bytes of
// shared memory: every thread keeps its pixel's sigmoids there, a column of its own, so none waits for another.
template <typename Label>
static __device__ void label_pixels(const float *masks, const float *probabilities, Label *labels, int *broken,
                                    Shape shape) {
  extern __shared__ float shared[];
  const int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y;
  if (x >= shape.output_width) return;
  labels[(long long)y * shape.output_width + x] =
      (Label)label_of(masks, probabilities, shape, y, x, shared + threadIdx.x, blockDim.x, broken);
}

extern "C" __global__ void label_map_u8(const float *masks, const float *probabilities, unsigned char *labels,
                                        int *broken, Shape shape) {
  label_pixels(masks, probabilities, labels, broken, shape);
}

extern "C" __global__ void label_map_u16(const float *masks, const float *probabilities, unsigned short *labels,
                                         int *broken, Shape shape) {
  label_pixels(masks, probabilities, labels, broken, shape);
}

#else

// The same on the CPU, pixel after pixel. `sigmoids` has room for `queries` floats; *broken as above.
extern "C" void label_map_on_host(const float *masks, const float *probabilities, unsigned short *labels, int *broken,
                                  const Shape *shape, float *sigmoids) {
  for (int y = 0; y < shape->output_height; ++y)
    for (int x = 0; x < shape->output_width; ++x)
      labels[(long long)y * shape->output_width + x] =
          (unsigned short)label_of(masks, probabilities, *shape, y, x, sigmoids, 1, broken);
}

#endif

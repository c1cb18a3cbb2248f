// One step of GPT-2 on a CPU: some new tokens of each of several texts, from embeddings to logits.
//
// native.py compiles this file when a model is prepared for decoding. It computes what model.py computes, in float32,
// from matrices in the dtype WEIGHT; what is multiplied with int8 is rounded to 16 bits. With few tokens, the time of a
// step is that of reading the matrices once, so a team of threads goes through the step together, without PyTorch's cost
// of starting each operation.

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
enum { LANES = 16 };  // numbers of a vector
#define FROM_BFLOAT16(w) _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(w))), 16)
#define FROM_FLOAT16(w) _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(w)))
#define FROM_INT8(w) _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(w))))
#define FUSED(a, b, c) _mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c))
#define EIGHT(v) (_mm512_castps512_ps256((__m512)(v)) + _mm256_castpd_ps(_mm512_extractf64x4_pd((__m512d)(v), 1)))
#elif defined(__AVX2__) && defined(__F16C__) && defined(__FMA__)
#include <immintrin.h>
enum { LANES = 8 };
#define FROM_BFLOAT16(w) _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(w))), 16)
#define FROM_FLOAT16(w) _mm256_cvtph_ps(_mm_loadu_si128((const void *)(w)))
#define FROM_INT8(w) _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(w))))
#define FUSED(a, b, c) _mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c))
#define EIGHT(v) ((__m256)(v))
#else  // other processors, as well as the compiler can; GCC 12 converts float16 and int8 slowly in this way
enum { LANES = 4 };
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
#define FROM_BFLOAT16(w) (__builtin_convertvector(*(const Packed *)(w), Bits) << 16)
#define FROM_FLOAT16(w) __builtin_convertvector(*(const Halves *)(w), Vector)
#define FROM_INT8(w) __builtin_convertvector(*(const Packed *)(w), Vector)
#if defined(__aarch64__)
#include <arm_neon.h>
#define FUSED(a, b, c) vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b))
#else
#define FUSED(a, b, c) ((a) * (b) + (c))
#endif
#endif
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

// a · b + c, rounded once where the processor can. The compiler may not decide that itself (-ffp-contract=off), because
// it would do so for some numbers of tokens, and not for others.
static inline Vector fused(Vector a, Vector b, Vector c) {
    return (Vector)FUSED(a, b, c);
}

#if defined(WEIGHT_float16) || defined(KEPT_float16)
#if defined(__F16C__)
typedef uint16_t Half;  // before version 12, GCC knows no _Float16 here
static inline float from_half(Half h) { return _cvtsh_ss(h); }
static inline Half to_half(float f) { return _cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT); }
#else
typedef _Float16 Half;
typedef Half Halves __attribute__((vector_size(2 * LANES), aligned(1), may_alias));
static inline float from_half(Half h) { return (float)h; }
static inline Half to_half(float f) { return (Half)f; }
#endif
#endif

// value: a weight as float32. vector: LANES weights as float32.
#if defined(WEIGHT_bfloat16)
typedef uint16_t Weight;
#define VECTOR FROM_BFLOAT16
static inline float value(Weight w) {
    const uint32_t bits = (uint32_t)w << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}
#elif defined(WEIGHT_float16)
typedef Half Weight;
#define VECTOR FROM_FLOAT16
static inline float value(Weight w) { return from_half(w); }
#else
#if defined(WEIGHT_int8)
typedef int8_t Weight;
#define VECTOR FROM_INT8
#else
typedef float Weight;
#define VECTOR(w) (*(const Vector *)(w))
#endif
static inline float value(Weight w) { return (float)w; }
#endif
typedef Weight Packed __attribute__((vector_size(sizeof(Weight) * LANES), aligned(1), may_alias));
static inline Vector vector(const Weight *w) { return (Vector)VECTOR(w); }

// The inputs of a product: float32 or, with int8, integers of 16 bits, of which a processor multiplies and adds twice as
// many at a time. TERMS: number of products that are added to the lanes of a sum at a time.
#if defined(WEIGHT_int8) && defined(__AVX512BW__)
#define INTEGERS
typedef __m512i Sums;
#define WIDENED(w) _mm512_cvtepi8_epi16(_mm256_loadu_si256((const void *)(w)))
#define AS_FLOATS(sums) _mm512_cvtepi32_ps(sums)
#elif defined(WEIGHT_int8) && defined(EIGHT) && !defined(__AVX512F__)
#define INTEGERS
typedef __m256i Sums;
#define WIDENED(w) _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(w)))
#define AS_FLOATS(sums) _mm256_cvtepi32_ps(sums)
#endif
#if defined(INTEGERS)
typedef int16_t Input;
typedef int16_t Inputs __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
enum { TERMS = 2 * LANES };
static inline Inputs weights_of(const Weight *w) { return (Inputs)WIDENED(w); }
static inline Vector lanes_of(Sums sums) { return (Vector)AS_FLOATS(sums); }
// Adds the products of neighbours to the sums. With intrinsics, GCC 12 keeps the sums of a tile in memory.
static inline Sums multiply_add(Inputs a, Inputs b, Sums sums) {
#if defined(__AVX512VNNI__)
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b));
#else
    Sums products;
    __asm__("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+v"(sums), "=&v"(products) : "v"(a), "v"(b));
#endif
    return sums;
}
#else
typedef float Input;
typedef Vector Inputs, Sums;
enum { TERMS = LANES };
static inline Inputs weights_of(const Weight *w) { return vector(w); }
static inline Vector lanes_of(Sums sums) { return sums; }
static inline Sums multiply_add(Inputs a, Inputs b, Sums sums) { return fused(a, b, sums); }
#endif

// The magnitude of a number as an integer, which is larger for a larger number, and largest for NaN. With -ffast-math, a
// comparison of floats may take NaN for any number, and what a damaged model computes would look like numbers.
static inline int32_t magnitude(float f) {
    int32_t bits;
    memcpy(&bits, &f, sizeof bits);
    return bits & INT32_MAX;
}

// A number of the keys and values in memory. to_kept: float32 as such a number. kept, from_kept: LANES or one as float32.
#if defined(KEPT_float16)
#if !defined(__F16C__) && !defined(__aarch64__)
#error "this processor converts float16 slowly"
#endif
typedef Half Kept;
static inline Kept to_kept(float f) {
    const int is_too_large = magnitude(f) > magnitude(65504.0f) && magnitude(f) < magnitude(INFINITY);
    return to_half(is_too_large ? copysignf(65504.0f, f) : f);
}
static inline float from_kept(Kept k) { return from_half(k); }
static inline Vector kept(const Kept *k) { return (Vector)FROM_FLOAT16(k); }
#else
typedef float Kept;
static inline Kept to_kept(float f) { return f; }
static inline float from_kept(Kept k) { return k; }
static inline Vector kept(const Kept *k) { return *(const Vector *)k; }
#endif

typedef struct {
    const Weight *weight;  // (rows, columns)
    const float *scales;   // (rows), or NULL
    const float *bias;     // (rows), or NULL
} Matrix;

typedef struct {
    const float *ln_1_weight, *ln_1_bias, *ln_2_weight, *ln_2_bias;  // (C); a bias may be NULL
    Matrix c_attn, attn_c_proj, c_fc, mlp_c_proj;
} Block;

typedef struct {
    int n_layer, n_head, n_embd, vocab_size, tanh_gelu;
    const float *ln_f_weight, *ln_f_bias;
    Matrix wte;
    const float *wpe;  // (block_size, C)
    const Block *blocks;
} Model;

typedef struct {
    Kept *k, *v;                          // keys and values of the first slot, in the first layer
    ptrdiff_t layer, slot, head;          // distances between layers, slots and heads, in numbers
    const int64_t *slots, *positions;     // (B): slot and position of each token
} Cache;

// Rows of a matrix, and tokens, whose products are summed at the same time: as many as there are registers for the sums,
// the inputs and a weight.
#if defined(__AVX512F__)
enum { ROWS = 4, TOKENS = 6 };
#elif defined(INTEGERS)
enum { ROWS = 4, TOKENS = 2 };
#elif defined(EIGHT)
enum { ROWS = 4, TOKENS = 3 };
#else
enum { ROWS = 4, TOKENS = 4 };
#endif
typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));  // a number of each of ROWS rows or KEYS keys
enum { KEYS = 4, STRIP = 4 };  // keys, and vectors of channels, of a head that are computed at the same time
enum { LINE = 64 };  // bytes of a line of memory
enum { AHEAD = 24576, KEPT_AHEAD = 4096 };  // bytes by which reading, into the second cache, is ahead: matrices, and keys

// Keeps a vector in a register. The compiler would load it again for each product, and a tile would wait for loads.
#if defined(__x86_64__)
#define KEEP(v) __asm__("" : "+v"(v))
#else
#define KEEP(v)
#endif

// The sum of the lanes, always in the same order: the upper half is added to the lower one until one lane is left.
// sums_of: the sums of four vectors, each in that order.
#ifdef EIGHT
static inline __m128 four_lanes(Vector v) {
    const __m256 eight = EIGHT(v);
    return _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
}
static inline float sum_of(Vector v) {
    const __m128 four = four_lanes(v), two = four + _mm_movehl_ps(four, four);
    return two[0] + two[1];
}
static inline Four sums_of(Vector a, Vector b, Vector c, Vector d) {
    const __m128 fours[] = {four_lanes(a), four_lanes(b), four_lanes(c), four_lanes(d)};
    const __m128 ab = _mm_movelh_ps(fours[0], fours[1]) + _mm_movehl_ps(fours[1], fours[0]);
    const __m128 cd = _mm_movelh_ps(fours[2], fours[3]) + _mm_movehl_ps(fours[3], fours[2]);
    return (Four)(_mm_shuffle_ps(ab, cd, 0x88) + _mm_shuffle_ps(ab, cd, 0xDD));
}
#else
static inline float sum_of(Vector v) {
    float sums[LANES];
    memcpy(sums, &v, sizeof sums);
    for (int half = LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
    return sums[0];
}
static inline Four sums_of(Vector a, Vector b, Vector c, Vector d) {
    return (Four){sum_of(a), sum_of(b), sum_of(c), sum_of(d)};
}
#endif

// What is multiplied with matrices: B rows of numbers, which may have a scale each.
typedef struct {
    const Input *values;
    const float *scales;  // (B), or NULL
} Tokens;

// The products of n_rows rows with what is left of an input from column `begin` on.
static __attribute__((noinline)) Four rest(const Weight *w, const Input *in, int begin, int columns, int n_rows) {
    Four found = {0};
    for (int r = 0; r < n_rows; r++)
        for (int j = begin; j < columns; j++) found[r] += value(w[(size_t)r * columns + j]) * in[j];
    return found;
}

// y[b][row] = matrix[row] · x[b] (+ bias) for n_rows rows and n_tokens tokens, which are constants where this is inlined.
// Each product is summed in the same order whatever they are, so that a token does not depend on the number of tokens.
// In each of its iterations, the tile asks for `lines` lines of memory from `ahead` on.
static inline __attribute__((always_inline)) void tile(
    const Matrix m, int columns, const Tokens x, float *y, int stride, int row, int b, int n_rows, int n_tokens,
    const char *ahead, int lines) {
    const Weight *w = m.weight + (size_t)row * columns;
    const Input *in = x.values + (size_t)b * columns;
    Sums sums[ROWS][TOKENS] = {{{0}}};
    int i = 0;
    for (; i + TERMS <= columns; i += TERMS) {
        Inputs inputs[TOKENS];
        for (int t = 0; t < n_tokens; t++) {
            inputs[t] = *(const Inputs *)(in + (size_t)t * columns + i);
            KEEP(inputs[t]);
        }
        for (int line = 0; line < lines; line++, ahead += LINE) __builtin_prefetch(ahead, 0, 2);
        for (int r = 0; r < n_rows; r++) {
            const Inputs weights = weights_of(w + (size_t)r * columns + i);
            for (int t = 0; t < n_tokens; t++) sums[r][t] = multiply_add(weights, inputs[t], sums[r][t]);
        }
    }
    for (int t = 0; t < n_tokens; t++) {
        Four found = {sum_of(lanes_of(sums[0][t]))};
        if (n_rows == ROWS)
            found = sums_of(lanes_of(sums[0][t]), lanes_of(sums[1][t]), lanes_of(sums[2][t]), lanes_of(sums[3][t]));
        if (i < columns) found += rest(w, in + (size_t)t * columns, i, columns, n_rows);
        float *out = y + (size_t)(b + t) * stride + row;
        if (x.scales) found *= x.scales[b + t];
        if (n_rows == ROWS) {
            if (m.scales) found *= *(const Four *)(m.scales + row);
            if (m.bias) found += *(const Four *)(m.bias + row);
            *(Four *)out = found;
        } else {
            if (m.scales) found[0] *= m.scales[row];
            if (m.bias) found[0] += m.bias[row];
            *out = found[0];
        }
    }
}

// The products of n_rows rows with all B tokens. The tiles share the lines to ask for.
static inline __attribute__((always_inline)) void rows_with_tokens(
    const Matrix m, int columns, const Tokens x, int B, float *y, int stride, int row, int n_rows) {
    const int tiles = (B + TOKENS - 1) / TOKENS, iterations = columns / TERMS;
    const int lines = (n_rows * TERMS * (int)sizeof(Weight) + tiles * LINE - 1) / (tiles * LINE);
    const char *ahead = (const char *)(m.weight + (size_t)row * columns) + AHEAD;
    int b = 0;
    for (; b + TOKENS <= B; b += TOKENS, ahead += iterations * lines * LINE)
        tile(m, columns, x, y, stride, row, b, n_rows, TOKENS, ahead, lines);
    switch (B - b) {
    case 5: tile(m, columns, x, y, stride, row, b, n_rows, TOKENS < 5 ? TOKENS : 5, ahead, lines); break;
    case 4: tile(m, columns, x, y, stride, row, b, n_rows, TOKENS < 4 ? TOKENS : 4, ahead, lines); break;
    case 3: tile(m, columns, x, y, stride, row, b, n_rows, TOKENS < 3 ? TOKENS : 3, ahead, lines); break;
    case 2: tile(m, columns, x, y, stride, row, b, n_rows, 2, ahead, lines); break;
    case 1: tile(m, columns, x, y, stride, row, b, n_rows, 1, ahead, lines); break;
    }
}

// The products of rows begin … end - 1 with all B tokens.
static void product(const Matrix m, int columns, const Tokens x, int B, float *y, int stride, int begin, int end) {
    int row = begin;
#if !defined(WEIGHT_int8) || defined(INTEGERS)  // int8 is converted to float32 faster for several rows
    if (B == 1)  // the processor reads ahead by itself where memory is read in its order, and faster than when asked to
        for (; row < end; row++) tile(m, columns, x, y, stride, row, 0, 1, 1, NULL, 0);
#endif
    for (; row + ROWS <= end; row += ROWS) rows_with_tokens(m, columns, x, B, y, stride, row, ROWS);
    for (; row < end; row++) rows_with_tokens(m, columns, x, B, y, stride, row, 1);
}

#if defined(INTEGERS)
// The largest integer for which no lane of a sum of `columns` products can overflow.
static int largest_integer(int columns) {
    const int terms = TERMS / LANES * (columns / TERMS + 1), largest = INT32_MAX / (128 * terms);
    return largest < INT16_MAX ? largest : INT16_MAX;
}

// x ≈ values · scale: the largest value of a token becomes the largest integer, so that the sums in the lanes are exact.
// With a value that is not finite, the scale is not finite either, and no product is.
static void to_integers(const float *x, int size, int16_t *values, float *scale) {
    const int limit = largest_integer(size);
    int32_t bits = magnitude(1e-30f);
#pragma omp simd reduction(max : bits)
    for (int i = 0; i < size; i++) bits = magnitude(x[i]) > bits ? magnitude(x[i]) : bits;
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    const float factor = (float)limit / largest;
#pragma omp simd
    for (int i = 0; i < size; i++) values[i] = (int16_t)(int)(x[i] * factor + copysignf(0.5f, x[i]));
    *scale = largest / (float)limit;
}
#endif

// B rows of x as what is multiplied. All threads call this together. memory: (B · size + 1) / 2 + B floats.
static Tokens tokens_of(const float *x, int B, int size, float *memory) {
#if defined(INTEGERS)
    int16_t *values = (int16_t *)memory;
    float *scales = memory + ((size_t)B * size + 1) / 2;
#pragma omp for
    for (int b = 0; b < B; b++) to_integers(x + (size_t)b * size, size, values + (size_t)b * size, scales + b);
    return (Tokens){values, scales};
#else
    (void)B, (void)size, (void)memory;
    return (Tokens){x, NULL};
#endif
}

// x = the embedding of a token at a position.
static void embed(const Model *model, int64_t id, int64_t position, float *x) {
    const int C = model->n_embd;
    const Weight *token = model->wte.weight + id * C;
    const float scale = model->wte.scales ? model->wte.scales[id] : 1.0f;
    for (int i = 0; i < C; i++) x[i] = value(token[i]) * scale + model->wpe[position * C + i];
}

static void layer_norm(const float *x, const float *weight, const float *bias, int size, float *y) {
    float mean = 0, variance = 0;
#pragma omp simd reduction(+ : mean)
    for (int i = 0; i < size; i++) mean += x[i];
    mean /= size;
#pragma omp simd reduction(+ : variance)
    for (int i = 0; i < size; i++) variance += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / sqrtf(variance / size + 1e-5f);
    for (int i = 0; i < size; i++) y[i] = (x[i] - mean) * scale * weight[i] + (bias ? bias[i] : 0.0f);
}

// GELU of LANES numbers. The vectors and the rest of a longer loop would be rounded differently, and the rest of a
// thread's share begins elsewhere with another number of threads.
static __attribute__((noinline)) void gelu_of_lanes(float *x, int is_tanh) {
    if (is_tanh) {  // 0.5 · (1 + tanh(u)) = 1 / (1 + exp(-2u)); fast division cannot divide by infinity
#pragma omp simd
        for (int i = 0; i < LANES; i++) {
            const float u = -1.5957691216057308f * (x[i] + 0.044715f * x[i] * x[i] * x[i]);
            x[i] /= 1.0f + expf(u < 80.0f ? u : 80.0f);
        }
    } else {
#pragma omp simd
        for (int i = 0; i < LANES; i++) x[i] *= 0.5f * (1.0f + erff(x[i] * 0.7071067811865476f));
    }
}

static void gelu(float *x, int size, int is_tanh) {
    int i = 0;
    for (; i + LANES <= size; i += LANES) gelu_of_lanes(x + i, is_tanh);
    if (i < size) {
        float last[LANES] = {0};
        memcpy(last, x + i, sizeof(float) * (size_t)(size - i));
        gelu_of_lanes(last, is_tanh);
        memcpy(x + i, last, sizeof(float) * (size_t)(size - i));
    }
}

// Asks for `count` numbers that are read KEPT_AHEAD bytes later. The processor itself foresees only those of a page.
static inline __attribute__((always_inline)) void ask(const Kept *k, int count) {
    for (int i = 0; i < count * (int)sizeof(Kept); i += LINE) __builtin_prefetch((const char *)k + i, 0, 2);
}

// scores[t] = scale · q · k[t] for n keys, a constant where this is inlined. Each is summed in the same order.
static inline __attribute__((always_inline)) void score(
    const float *q, const Kept *k, int size, float scale, float *scores, int n) {
    Vector sums[KEYS] = {{0}};
    int i = 0;
    for (; i + LANES <= size; i += LANES)
        for (int t = 0; t < n; t++)
            sums[t] = fused(*(const Vector *)(q + i), kept(k + (size_t)t * size + i), sums[t]);
    Four found = {sum_of(sums[0])};
    if (n == KEYS) found = sums_of(sums[0], sums[1], sums[2], sums[3]);
    for (; i < size; i++)
        for (int t = 0; t < n; t++) found[t] += q[i] * from_kept(k[(size_t)t * size + i]);
    found *= scale;
    if (n == KEYS)
        *(Four *)scores = found;
    else
        *scores = found[0];
}

// y = the sum of the weighted v[t], for n · LANES channels; n is a constant where this is inlined.
static inline __attribute__((always_inline)) void weighted_sum(
    const float *weights, const Kept *v, int length, int size, float *y, int n) {
    Vector sums[STRIP] = {{0}};
    const int ahead = KEPT_AHEAD / (size * (int)sizeof(Kept));
    for (int t = 0; t < length; t++) {
        const Vector weight = (Vector){0} + weights[t];
        if (t + ahead < length) ask(v + (size_t)(t + ahead) * size, n * LANES);
        for (int i = 0; i < n; i++) sums[i] = fused(weight, kept(v + (size_t)t * size + i * LANES), sums[i]);
    }
    for (int i = 0; i < n; i++) *(Vector *)(y + i * LANES) = sums[i];
}

// One head of one token: q attends to the keys of positions 0 … length - 1. scores holds `length` floats.
static void attend(const float *q, const Kept *k, const Kept *v, int length, int size, float *scores, float *y) {
    const float scale = 1.0f / sqrtf((float)size);
    float largest = -INFINITY, total = 0;
    int t = 0, i = 0;
    const int ahead = KEPT_AHEAD / (size * (int)sizeof(Kept));  // values are read after the last key
    for (; t + KEYS <= length; t += KEYS) {
        ask(t + ahead < length ? k + (size_t)(t + ahead) * size : v + (size_t)(t + ahead - length) * size, KEYS * size);
        score(q, k + (size_t)t * size, size, scale, scores + t, KEYS);
    }
    for (; t < length; t++) score(q, k + (size_t)t * size, size, scale, scores + t, 1);
#pragma omp simd reduction(max : largest)
    for (t = 0; t < length; t++) largest = scores[t] > largest ? scores[t] : largest;
#pragma omp simd reduction(+ : total)
    for (t = 0; t < length; t++) {
        scores[t] = expf(scores[t] - largest);
        total += scores[t];
    }
    for (t = 0; t < length; t++) scores[t] /= total;
    for (; i + STRIP * LANES <= size; i += STRIP * LANES) weighted_sum(scores, v + i, length, size, y + i, STRIP);
    for (; i + LANES <= size; i += LANES) weighted_sum(scores, v + i, length, size, y + i, 1);
    for (; i < size; i++) {
        y[i] = 0;
        for (t = 0; t < length; t++) y[i] += scores[t] * from_kept(v[(size_t)t * size + i]);
    }
}

// Rows of a matrix for thread `number` of `count`: complete tiles, so that no two threads write next to each other.
static void share(int rows, int number, int count, int *begin, int *end) {
    const int groups = (rows + ROWS - 1) / ROWS;
    *begin = (int)((long)groups * number / count) * ROWS;
    *end = (int)((long)groups * (number + 1) / count) * ROWS;
    if (*end > rows) *end = rows;
}

// Where the keys and values of a head of a token's text begin.
static ptrdiff_t offset(const Cache *cache, int layer, int b, int head) {
    return layer * cache->layer + cache->slots[b] * cache->slot + head * cache->head;
}

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif

// ids: (B), the tokens. wanted: (W), those of them whose logits are computed, in ascending order. logits: (W, V).
// memory: n_threads · n_scores + B · (12 · C + 1) floats. n_scores: at least the largest position + 1. A row of the
// logits is the same, bit for bit, whatever the other tokens and n_threads are.
void decode(
    const Model *model, const Cache *cache, int B, const int64_t *ids, int W, const int64_t *wanted, float *logits,
    float *memory, int n_scores, int n_threads) {
    const int C = model->n_embd, nh = model->n_head, hs = C / nh;
    float *normed = memory + (size_t)n_threads * n_scores, *qkv = normed + (size_t)B * C, *y = qkv + (size_t)B * 3 * C;
    float *hidden = y + (size_t)B * C, *x = hidden + (size_t)B * 4 * C, *inputs = x + (size_t)B * C;
#pragma omp parallel num_threads(n_threads)
    {
        const int thread = omp_get_thread_num(), threads = omp_get_num_threads();
        float *own_scores = memory + (size_t)thread * n_scores;
        int begin, end;
#pragma omp for
        for (int b = 0; b < B; b++) embed(model, ids[b], cache->positions[b], x + (size_t)b * C);
        for (int layer = 0; layer < model->n_layer; layer++) {
            const Block *block = &model->blocks[layer];
#pragma omp for
            for (int b = 0; b < B; b++)
                layer_norm(x + (size_t)b * C, block->ln_1_weight, block->ln_1_bias, C, normed + (size_t)b * C);
            share(3 * C, thread, threads, &begin, &end);
            product(block->c_attn, C, tokens_of(normed, B, C, inputs), B, qkv, 3 * C, begin, end);
#pragma omp barrier
#pragma omp for
            for (int b = 0; b < B; b++) {
                for (int h = 0; h < nh; h++) {
                    const ptrdiff_t at = offset(cache, layer, b, h) + cache->positions[b] * hs;
                    const float *k = qkv + (size_t)b * 3 * C + C + h * hs;
                    for (int i = 0; i < hs; i++) cache->k[at + i] = to_kept(k[i]), cache->v[at + i] = to_kept(k[i + C]);
                }
            }
#pragma omp for collapse(2) schedule(static, 1)
            for (int b = 0; b < B; b++) {
                for (int h = 0; h < nh; h++) {
                    const ptrdiff_t at = offset(cache, layer, b, h);
                    const float *q = qkv + (size_t)b * 3 * C + h * hs;
                    const int length = (int)cache->positions[b] + 1;
                    attend(q, cache->k + at, cache->v + at, length, hs, own_scores, y + (size_t)b * C + h * hs);
                }
            }
            share(C, thread, threads, &begin, &end);
            product(block->attn_c_proj, C, tokens_of(y, B, C, inputs), B, normed, C, begin, end);
#pragma omp barrier
#pragma omp for
            for (int b = 0; b < B; b++) {
                float *row = x + (size_t)b * C, *out = normed + (size_t)b * C;
                for (int i = 0; i < C; i++) row[i] += out[i];
                layer_norm(row, block->ln_2_weight, block->ln_2_bias, C, out);
            }
            share(4 * C, thread, threads, &begin, &end);
            product(block->c_fc, C, tokens_of(normed, B, C, inputs), B, hidden, 4 * C, begin, end);
            for (int b = 0; b < B; b++) gelu(hidden + (size_t)b * 4 * C + begin, end - begin, model->tanh_gelu);
#pragma omp barrier
            share(C, thread, threads, &begin, &end);
            product(block->mlp_c_proj, 4 * C, tokens_of(hidden, B, 4 * C, inputs), B, normed, C, begin, end);
            for (int b = 0; b < B; b++)
                for (int i = begin; i < end; i++) x[(size_t)b * C + i] += normed[(size_t)b * C + i];
#pragma omp barrier
        }
#pragma omp for
        for (int w = 0; w < W; w++)
            layer_norm(x + (size_t)wanted[w] * C, model->ln_f_weight, model->ln_f_bias, C, normed + (size_t)w * C);
        share(model->vocab_size, thread, threads, &begin, &end);
        product(model->wte, C, tokens_of(normed, W, C, inputs), W, logits, model->vocab_size, begin, end);
    }
}

// One step of GPT-2 on a CPU: some new tokens of each of several texts, from embeddings to logits.
//
// native.py compiles this file when a model is prepared for decoding. It computes what model.py computes, in float32,
// from matrices in the dtype WEIGHT. With few tokens, the time of a step is that of reading the matrices once, so a team
// of threads goes through the step together, without PyTorch's cost of starting each operation.

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
#elif defined(__AVX2__) && defined(__F16C__)
#include <immintrin.h>
enum { LANES = 8 };
#define FROM_BFLOAT16(w) _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(w))), 16)
#define FROM_FLOAT16(w) _mm256_cvtph_ps(_mm_loadu_si128((const void *)(w)))
#define FROM_INT8(w) _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(w))))
#else  // other processors, as well as the compiler can; GCC 12 converts float16 and int8 slowly in this way
enum { LANES = 4 };
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));
#define FROM_BFLOAT16(w) (__builtin_convertvector(*(const Packed *)(w), Bits) << 16)
#define FROM_FLOAT16(w) __builtin_convertvector(*(const Packed *)(w), Vector)
#define FROM_INT8(w) __builtin_convertvector(*(const Packed *)(w), Vector)
#endif
typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

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
#else
#if defined(WEIGHT_float16)
typedef _Float16 Weight;
#define VECTOR FROM_FLOAT16
#elif defined(WEIGHT_int8)
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
    float *k, *v;                         // keys and values of the first slot, in the first layer
    ptrdiff_t layer, slot, head;          // distances between layers, slots and heads, in floats
    const int64_t *slots, *positions;     // (B): slot and position of each token
} Cache;

// Rows of a matrix, and tokens, whose products are summed at the same time: as many as there are registers for the sums.
#if defined(__AVX512F__)
enum { ROWS = 4, TOKENS = 6 };
#else
enum { ROWS = 4, TOKENS = 4 };
#endif
enum { KEYS = 4, STRIP = 4 };  // keys, and vectors of channels, of a head that are computed at the same time
enum { AHEAD = 24576 };        // bytes by which reading, into the second cache, runs ahead of computing

// The sum of the lanes, always in the same order: the upper half is added to the lower one until one lane is left.
static inline float sum_of(Vector v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float sums[LANES];
    memcpy(sums, &v, sizeof sums);
    for (int half = LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
    return sums[0];
#endif
}

// y[b][row] = matrix[row] · x[b] (+ bias) for n_rows rows and n_tokens tokens. Both are constants where this is inlined,
// and so is `is_ahead`, which tells whether to ask for rows before they are used. Each product is summed in the same
// order whatever the constants are, so that a token does not depend on the number of tokens.
static inline __attribute__((always_inline)) void tile(
    const Matrix m, int columns, const float *x, float *y, int stride, int row, int b, int n_rows, int n_tokens, int is_ahead) {
    const Weight *w = m.weight + (size_t)row * columns;
    const float *in = x + (size_t)b * columns;
    Vector sums[ROWS][TOKENS] = {{{0}}};
    int i = 0;
    for (; i + LANES <= columns; i += LANES)
        for (int r = 0; r < n_rows; r++) {
            const Weight *from = w + (size_t)r * columns + i;
            if (is_ahead) __builtin_prefetch((const char *)from + AHEAD, 0, 2);
            const Vector weights = vector(from);
            for (int t = 0; t < n_tokens; t++) sums[r][t] += weights * *(const Vector *)(in + (size_t)t * columns + i);
        }
    for (int r = 0; r < n_rows; r++)
        for (int t = 0; t < n_tokens; t++) {
            float sum = sum_of(sums[r][t]);
            for (int j = i; j < columns; j++) sum += value(w[(size_t)r * columns + j]) * in[(size_t)t * columns + j];
            if (m.scales) sum *= m.scales[row + r];
            y[(size_t)(b + t) * stride + row + r] = m.bias ? sum + m.bias[row + r] : sum;
        }
}

// The products of n_rows rows with all B tokens.
static inline __attribute__((always_inline)) void rows_with_tokens(
    const Matrix m, int columns, const float *x, int B, float *y, int stride, int row, int n_rows) {
    int b = 0;
    if (B >= TOKENS) tile(m, columns, x, y, stride, row, 0, n_rows, TOKENS, 1), b = TOKENS;
    for (; b + TOKENS <= B; b += TOKENS) tile(m, columns, x, y, stride, row, b, n_rows, TOKENS, 0);
    switch (B - b) {
    case 5: tile(m, columns, x, y, stride, row, b, n_rows, TOKENS < 5 ? TOKENS : 5, 1); break;
    case 4: tile(m, columns, x, y, stride, row, b, n_rows, 4, 1); break;
    case 3: tile(m, columns, x, y, stride, row, b, n_rows, 3, 1); break;
    case 2: tile(m, columns, x, y, stride, row, b, n_rows, 2, 1); break;
    case 1: tile(m, columns, x, y, stride, row, b, n_rows, 1, 1); break;
    }
}

// The products of rows begin … end - 1 with all B tokens.
static void product(const Matrix m, int columns, const float *x, int B, float *y, int stride, int begin, int end) {
    int row = begin;
#if !defined(WEIGHT_int8)  // converting int8 takes longer than reading it, and is faster for several rows
    if (B == 1)  // the processor reads ahead by itself where memory is read in its order, and faster than when asked to
        for (; row < end; row++) tile(m, columns, x, y, stride, row, 0, 1, 1, 0);
#endif
    for (; row + ROWS <= end; row += ROWS) rows_with_tokens(m, columns, x, B, y, stride, row, ROWS);
    for (; row < end; row++) rows_with_tokens(m, columns, x, B, y, stride, row, 1);
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

static void gelu(float *x, int size, int is_tanh) {
    if (is_tanh) {  // 0.5 · (1 + tanh(u)) = 1 / (1 + exp(-2u)); fast division cannot divide by infinity
#pragma omp simd
        for (int i = 0; i < size; i++) {
            const float u = -1.5957691216057308f * (x[i] + 0.044715f * x[i] * x[i] * x[i]);
            x[i] /= 1.0f + expf(u < 80.0f ? u : 80.0f);
        }
    } else {
        for (int i = 0; i < size; i++) x[i] *= 0.5f * (1.0f + erff(x[i] * 0.7071067811865476f));
    }
}

// scores[t] = scale · q · k[t] for n keys, a constant where this is inlined. Each is summed in the same order.
static inline __attribute__((always_inline)) void score(
    const float *q, const float *k, int size, float scale, float *scores, int n) {
    Vector sums[KEYS] = {{0}};
    int i = 0;
    for (; i + LANES <= size; i += LANES)
        for (int t = 0; t < n; t++) sums[t] += *(const Vector *)(q + i) * *(const Vector *)(k + (size_t)t * size + i);
    for (int t = 0; t < n; t++) {
        float sum = sum_of(sums[t]);
        for (int j = i; j < size; j++) sum += q[j] * k[(size_t)t * size + j];
        scores[t] = sum * scale;
    }
}

// y = the sum of the weighted v[t], for n · LANES channels; n is a constant where this is inlined.
static inline __attribute__((always_inline)) void weighted_sum(
    const float *weights, const float *v, int length, int size, float *y, int n) {
    Vector sums[STRIP] = {{0}};
    for (int t = 0; t < length; t++)
        for (int i = 0; i < n; i++) sums[i] += weights[t] * *(const Vector *)(v + (size_t)t * size + i * LANES);
    for (int i = 0; i < n; i++) *(Vector *)(y + i * LANES) = sums[i];
}

// One head of one token: q attends to the keys of positions 0 … length - 1. scores holds `length` floats.
static void attend(const float *q, const float *k, const float *v, int length, int size, float *scores, float *y) {
    const float scale = 1.0f / sqrtf((float)size);
    float largest = -INFINITY, total = 0;
    int t = 0, i = 0;
    for (; t + KEYS <= length; t += KEYS) score(q, k + (size_t)t * size, size, scale, scores + t, KEYS);
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
        for (t = 0; t < length; t++) y[i] += scores[t] * v[(size_t)t * size + i];
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
// memory: n_threads · n_scores + B · 10 · C floats. n_scores: at least the largest position + 1. A row of the logits is
// the same, bit for bit, whatever the other tokens are.
void decode(
    const Model *model, const Cache *cache, int B, const int64_t *ids, int W, const int64_t *wanted, float *logits,
    float *memory, int n_scores, int n_threads) {
    const int C = model->n_embd, nh = model->n_head, hs = C / nh;
    float *normed = memory + (size_t)n_threads * n_scores, *qkv = normed + (size_t)B * C, *y = qkv + (size_t)B * 3 * C;
    float *hidden = y + (size_t)B * C, *x = hidden + (size_t)B * 4 * C;
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
            product(block->c_attn, C, normed, B, qkv, 3 * C, begin, end);
#pragma omp barrier
#pragma omp for
            for (int b = 0; b < B; b++) {
                for (int h = 0; h < nh; h++) {
                    const ptrdiff_t at = offset(cache, layer, b, h) + cache->positions[b] * hs;
                    const float *k = qkv + (size_t)b * 3 * C + C + h * hs;
                    memcpy(cache->k + at, k, hs * sizeof *k);
                    memcpy(cache->v + at, k + C, hs * sizeof *k);
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
            product(block->attn_c_proj, C, y, B, normed, C, begin, end);
#pragma omp barrier
#pragma omp for
            for (int b = 0; b < B; b++) {
                float *row = x + (size_t)b * C, *out = normed + (size_t)b * C;
                for (int i = 0; i < C; i++) row[i] += out[i];
                layer_norm(row, block->ln_2_weight, block->ln_2_bias, C, out);
            }
            share(4 * C, thread, threads, &begin, &end);
            product(block->c_fc, C, normed, B, hidden, 4 * C, begin, end);
            for (int b = 0; b < B; b++) gelu(hidden + (size_t)b * 4 * C + begin, end - begin, model->tanh_gelu);
#pragma omp barrier
            share(C, thread, threads, &begin, &end);
            product(block->mlp_c_proj, 4 * C, hidden, B, normed, C, begin, end);
            for (int b = 0; b < B; b++)
                for (int i = begin; i < end; i++) x[(size_t)b * C + i] += normed[(size_t)b * C + i];
#pragma omp barrier
        }
#pragma omp for
        for (int w = 0; w < W; w++)
            layer_norm(x + (size_t)wanted[w] * C, model->ln_f_weight, model->ln_f_bias, C, normed + (size_t)w * C);
        share(model->vocab_size, thread, threads, &begin, &end);
        product(model->wte, C, normed, W, logits, model->vocab_size, begin, end);
    }
}

/* A picture made smaller or larger, to the bit as Pillow does it, in a quarter of its time.

   Pillow's own (libImaging/Resample.c) multiplies one value at a time by a weight of 22 bits. Here a weight is split into
   two of 12 bits, which a processor multiplies eight at a time, and only what is kept of the result is computed. First
   the rows are resized, then the columns; rounded to 8 bits in between, as there. */

#include "mmsearch.h"

#include <math.h>
#include <string.h>

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define HAS_SSE2 1
#endif
#ifdef MMSEARCH_PLAIN /* a test compiles both ways */
#undef HAS_SSE2
#endif

#define WEIGHT_BITS 22 /* as Pillow's PRECISION_BITS: what is left of 32 after 8 of a value, a sign, and one to spare */
#define LOW_BITS 12
#define MOST_WEIGHTS 1024 /* for one result; of so many the sums still fit into 32 bits */

typedef struct {
    int first, n;      /* which values of the source count */
    int32_t *weights;  /* n, and one of 0 where n is odd */
} Window;

typedef struct {
    Window *windows;
    int32_t *weights;
} Axis;

static double cubic(double x)
{
    x = fabs(x);
    if (x < 1.0)
        return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1;
    if (x < 2.0)
        return (((x - 5) * x + 8) * x - 4) * -0.5;
    return 0.0;
}

static double triangle(double x)
{
    x = fabs(x);
    return x < 1.0 ? 1.0 - x : 0.0;
}

/* Two weights, as _mm_madd_epi16 multiplies a pair of values by them: their high parts in one number, their low parts in
   the next. */
static inline void in_pairs(int32_t *weights)
{
#ifdef HAS_SSE2
    const uint32_t a = (uint32_t)weights[0], b = (uint32_t)weights[1], low = (1 << LOW_BITS) - 1;
    weights[0] = (int32_t)((uint32_t)(weights[1] >> LOW_BITS) << 16 | ((uint32_t)(weights[0] >> LOW_BITS) & 0xFFFF));
    weights[1] = (int32_t)((b & low) << 16 | (a & low));
#else
    (void)weights;
#endif
}

/* The windows of `n` results from `start` on, of `to` in all from `from` values; 0 if they are too large. */
static int weigh(Axis *axis, int from, int to, int start, int n, int is_cubic)
{
    double scale = (double)from / to, stretch = scale < 1.0 ? 1.0 : scale;
    double support = (is_cubic ? 2.0 : 1.0) * stretch;
    if (support > MOST_WEIGHTS / 2 - 2)
        return 0;
    int most = 2 * (int)ceil(support) + 2;
    double exact[MOST_WEIGHTS];
    axis->windows = PyMem_RawMalloc((size_t)n * sizeof(Window));
    axis->weights = PyMem_RawCalloc((size_t)n * most, sizeof(int32_t));
    if (axis->windows == NULL || axis->weights == NULL)
        return 0;
    for (int i = 0; i < n; i++) {
        double centre = (start + i + 0.5) * scale, sum = 0.0;
        int first = (int)(centre - support + 0.5), end = (int)(centre + support + 0.5);
        first = first < 0 ? 0 : first;
        end = end > from ? from : end;
        Window *window = &axis->windows[i];
        window->first = first;
        window->n = end - first;
        window->weights = axis->weights + (size_t)i * most;
        for (int x = 0; x < window->n; x++) {
            double at = (x + first - centre + 0.5) * (1.0 / stretch);
            sum += exact[x] = is_cubic ? cubic(at) : triangle(at);
        }
        for (int x = 0; x < window->n; x++) {
            double weight = (sum != 0.0 ? exact[x] / sum : exact[x]) * (1 << WEIGHT_BITS);
            window->weights[x] = (int32_t)(weight < 0 ? weight - 0.5 : weight + 0.5);
        }
        for (int x = 0; x < window->n; x += 2)
            in_pairs(window->weights + x);
    }
    return 1;
}

#ifdef HAS_SSE2

/* Four sums, rounded. */
static inline __m128i rounded(__m128i high, __m128i low)
{
    __m128i sum = _mm_add_epi32(_mm_slli_epi32(high, LOW_BITS), low);
    return _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(1 << (WEIGHT_BITS - 1))), WEIGHT_BITS);
}

static inline __m128i load32(const uint8_t *at)
{
    int32_t value;
    memcpy(&value, at, 4);
    return _mm_cvtsi32_si128(value);
}

static void resize_row(const uint8_t *row, const Axis *axis, int n, uint8_t *into)
{
    const __m128i zero = _mm_setzero_si128();
    for (int i = 0; i < n; i++, into += 4) {
        const Window *window = &axis->windows[i];
        const uint8_t *pixel = row + 4 * (size_t)window->first;
        __m128i high = zero, low = zero;
        const int32_t *weights = window->weights;
        int x = 0;
        for (; x + 1 < window->n; x += 2, pixel += 8) {
            __m128i two = _mm_loadl_epi64((const __m128i *)(const void *)pixel);
            __m128i pair = _mm_unpacklo_epi8(_mm_unpacklo_epi8(two, _mm_srli_si128(two, 4)), zero);
            high = _mm_add_epi32(high, _mm_madd_epi16(pair, _mm_set1_epi32(weights[x])));
            low = _mm_add_epi32(low, _mm_madd_epi16(pair, _mm_set1_epi32(weights[x + 1])));
        }
        if (x < window->n) {
            __m128i pair = _mm_unpacklo_epi8(_mm_unpacklo_epi8(load32(pixel), zero), zero);
            high = _mm_add_epi32(high, _mm_madd_epi16(pair, _mm_set1_epi32(weights[x])));
            low = _mm_add_epi32(low, _mm_madd_epi16(pair, _mm_set1_epi32(weights[x + 1])));
        }
        __m128i value = rounded(high, low);
        value = _mm_packs_epi32(value, value);
        int32_t four = _mm_cvtsi128_si32(_mm_packus_epi16(value, value));
        memcpy(into, &four, 4);
    }
}

/* A row of n values, a multiple of 8, from the rows of a window. */
static void resize_column(const uint8_t *rows, size_t stride, const Window *window, size_t n, uint8_t *into)
{
    const __m128i zero = _mm_setzero_si128();
    for (size_t at = 0; at < n; at += 8) {
        const uint8_t *row = rows + at;
        __m128i high[2] = {zero, zero}, low[2] = {zero, zero};
        for (int y = 0; y < window->n; y += 2, row += 2 * stride) {
            __m128i next = y + 1 < window->n ? _mm_loadl_epi64((const __m128i *)(const void *)(row + stride)) : zero;
            __m128i pairs = _mm_unpacklo_epi8(_mm_loadl_epi64((const __m128i *)(const void *)row), next);
            __m128i left = _mm_unpacklo_epi8(pairs, zero), right = _mm_unpackhi_epi8(pairs, zero);
            __m128i high_weights = _mm_set1_epi32(window->weights[y]), low_weights = _mm_set1_epi32(window->weights[y + 1]);
            high[0] = _mm_add_epi32(high[0], _mm_madd_epi16(left, high_weights));
            low[0] = _mm_add_epi32(low[0], _mm_madd_epi16(left, low_weights));
            high[1] = _mm_add_epi32(high[1], _mm_madd_epi16(right, high_weights));
            low[1] = _mm_add_epi32(low[1], _mm_madd_epi16(right, low_weights));
        }
        __m128i values = _mm_packs_epi32(rounded(high[0], low[0]), rounded(high[1], low[1]));
        _mm_storel_epi64((__m128i *)(void *)(into + at), _mm_packus_epi16(values, values));
    }
}

#else

static inline uint8_t rounded(int32_t sum)
{
    int32_t value = sum >> WEIGHT_BITS;
    return value < 0 ? 0 : value > 255 ? 255 : (uint8_t)value;
}

static void resize_row(const uint8_t *row, const Axis *axis, int n, uint8_t *into)
{
    for (int i = 0; i < n; i++, into += 4) {
        const Window *window = &axis->windows[i];
        const uint8_t *pixel = row + 4 * (size_t)window->first;
        int32_t sums[4] = {1 << (WEIGHT_BITS - 1), 1 << (WEIGHT_BITS - 1), 1 << (WEIGHT_BITS - 1), 1 << (WEIGHT_BITS - 1)};
        for (int x = 0; x < window->n; x++, pixel += 4)
            for (int band = 0; band < 4; band++)
                sums[band] += pixel[band] * window->weights[x];
        for (int band = 0; band < 4; band++)
            into[band] = rounded(sums[band]);
    }
}

static void resize_column(const uint8_t *rows, size_t stride, const Window *window, size_t n, uint8_t *into)
{
    for (size_t at = 0; at < n; at += 8) {
        const uint8_t *row = rows + at;
        int32_t sums[8];
        for (int i = 0; i < 8; i++)
            sums[i] = 1 << (WEIGHT_BITS - 1);
        for (int y = 0; y < window->n; y++, row += stride)
            for (int i = 0; i < 8; i++)
                sums[i] += row[i] * window->weights[y];
        for (int i = 0; i < 8; i++)
            into[at + i] = rounded(sums[i]);
    }
}

#endif

/* RGBX -> the kept part of the resized picture, RGB; 0 where there is no memory. */
static int resize_all(const uint8_t *pixels, int width, const Axis *across, const Axis *down, int n_across, int n_down, uint8_t *rgb)
{
    const Window *last = &down->windows[n_down - 1];
    int first = down->windows[0].first, n_rows = last->first + last->n - first;
    size_t stride = ((size_t)n_across * 4 + 7) / 8 * 8;
    uint8_t *rows = PyMem_RawCalloc((size_t)n_rows + 1, stride); /* one more, to make a row of the result in */
    if (rows == NULL)
        return 0;
    for (int y = 0; y < n_rows; y++)
        resize_row(pixels + (size_t)(first + y) * width * 4, across, n_across, rows + y * stride);
    uint8_t *row = rows + n_rows * stride;
    for (int y = 0; y < n_down; y++) {
        const Window *window = &down->windows[y];
        resize_column(rows + (window->first - first) * stride, stride, window, stride, row);
        for (int x = 0; x < n_across; x++, rgb += 3)
            memcpy(rgb, row + 4 * (size_t)x, 3);
    }
    PyMem_RawFree(rows);
    return 1;
}

static int fits(const Py_buffer *view, int width, int height, int bands)
{
    return width > 0 && height > 0 && view->len % ((Py_ssize_t)width * bands) == 0 && view->len / bands / width == height;
}

PyObject *resize(PyObject *module, PyObject *args)
{
    (void)module;
    Py_buffer pixels, rgb;
    int width, height, to_width, to_height, left, top, kept_w, kept_h, is_cubic, is_done = 0;
    if (!PyArg_ParseTuple(args, "y*(ii)(ii)(iiii)pw*", &pixels, &width, &height, &to_width, &to_height, &left, &top, &kept_w,
                          &kept_h, &is_cubic, &rgb))
        return NULL;
    int are_fine = fits(&pixels, width, height, 4) && fits(&rgb, kept_w, kept_h, 3) && left >= 0 && top >= 0 &&
                   kept_w <= to_width - left && kept_h <= to_height - top;
    if (are_fine) {
        Axis across = {NULL, NULL}, down = {NULL, NULL};
        Py_BEGIN_ALLOW_THREADS
        is_done = weigh(&across, width, to_width, left, kept_w, is_cubic) &&
                  weigh(&down, height, to_height, top, kept_h, is_cubic) &&
                  resize_all(pixels.buf, width, &across, &down, kept_w, kept_h, rgb.buf);
        PyMem_RawFree(across.windows);
        PyMem_RawFree(across.weights);
        PyMem_RawFree(down.windows);
        PyMem_RawFree(down.weights);
        Py_END_ALLOW_THREADS
    } else
        PyErr_SetString(PyExc_ValueError, "these sizes do not fit together");
    PyBuffer_Release(&pixels);
    PyBuffer_Release(&rgb);
    return are_fine ? PyBool_FromLong(is_done) : NULL;
}

/* A JPEG at an eighth of its size, to the bit what libjpeg-turbo gives at scale 1/8.

   At that scale a block of 8 x 8 pixels becomes one, which is its first coefficient; the others are only passed over.
   libjpeg-turbo passes over them one by one. Here one look into a table passes over as many as fit into PEEK bits,
   which takes less than half of the time. (ITU-T T.81, annexes B and F; the arithmetic is libjpeg's jidctred.c and
   jdcolor.c.)

   The bytes are hostile until shown otherwise. Whatever is not a plain, whole, baseline JPEG gives None, and whoever
   asked lets libjpeg judge it: there is no reason to guess here, and nothing to report. */

#include "mmsearch.h"
#include <Python.h>

#include <stdint.h>
#include <string.h>

#define PEEK 13                /* bits that index a table: 16 KB, so that what is in use stays in the L1 cache */
#define MOST_MCU_BYTES 4096    /* 10 blocks of 64 coefficients of at most 31 bits, rounded up */
#define MOST_COEFFICIENT 2047  /* beyond any of 8-bit samples; libjpeg's own kernels differ from each other far above */

/* What skip_at says: bits | how many coefficients << 6 | flags. Added up as a position in the block, each flag leads
   beyond it. */
enum { ENDS = 64 << 6 /* the last that is not zero is among them */, NONE = 128 << 6 /* not even one fits into the bits */ };

typedef struct {
    uint8_t symbols[256];
    uint8_t counts[17];          /* codes of each length */
    int32_t first_after[17];     /* the first code that is none of this length or shorter, left-aligned in 16 bits */
    int32_t offset[17];          /* from a code of a length to the place of its symbol */
    uint16_t symbol_at[1 << PEEK]; /* length << 8 | symbol; 0 for a code longer than PEEK */
    uint16_t skip_at[1 << PEEK];   /* for coefficients that are passed over */
} Huffman;

typedef struct {
    int id, across, down;        /* sampling factors */
    int quantiser, dc, ac;       /* which tables */
    int scale;                   /* samples that a block gives, in each direction: 1 or 2 */
    int stride;
    uint8_t *samples;
} Component;

typedef struct {
    const uint8_t *at, *end;     /* of the whole file, from after the last marker read */
    int width, height, n_components, restart_interval;
    int is_jfif, adobe_transform;
    int has_quantiser[4];
    uint8_t quantisers[4][64];
    Huffman *huffman[2][4];      /* DC and AC */
    Component components[3];
} Jpeg;

typedef struct {
    uint64_t bits;               /* left-aligned */
    int n_bits;                  /* that count; there may be more */
    const uint8_t *next, *end;
} Bits;

static const uint8_t zigzag[64] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
};

static inline void refill(Bits *bits)
{
    const uint8_t *b = bits->next;
    uint64_t more = (uint64_t)b[0] << 56 | (uint64_t)b[1] << 48 | (uint64_t)b[2] << 40 | (uint64_t)b[3] << 32 |
                    (uint64_t)b[4] << 24 | (uint64_t)b[5] << 16 | (uint64_t)b[6] << 8 | (uint64_t)b[7];
    bits->bits |= more >> bits->n_bits;
    bits->next += (63 - bits->n_bits) >> 3;
    bits->n_bits |= 56;
}

static inline void drop(Bits *bits, int n)
{
    bits->bits <<= n;
    bits->n_bits -= n;
}

/* The next symbol, dropped from the bits; -1 for a code that is none. At most 16 bits. */
static inline int next_symbol(Bits *bits, const Huffman *table)
{
    int entry = table->symbol_at[bits->bits >> (64 - PEEK)];
    if (entry != 0) {
        drop(bits, entry >> 8);
        return entry & 255;
    }
    int32_t code = (int32_t)(bits->bits >> 48);
    for (int length = PEEK + 1; length <= 16; length++)
        if (code < table->first_after[length]) {
            drop(bits, length);
            return table->symbols[(code >> (16 - length)) + table->offset[length]];
        }
    return -1;
}

/* The value of `size` further bits, 0 to 15 (T.81, F.2.2.1: EXTEND). */
static inline int next_value(Bits *bits, int size)
{
    int value = (int)(bits->bits >> 1 >> (63 - size));
    drop(bits, size);
    return value + (value < (1 << size) >> 1 ? 1 - (1 << size) : 0);
}

/* The first coefficient of the next block; 0 for damage. */
static inline int next_dc(Bits *bits, const Huffman *table, int *dc)
{
    refill(bits);
    int size = next_symbol(bits, table);
    if (size < 0 || size > 11)
        return 0;
    *dc += next_value(bits, size);
    return *dc >= -MOST_COEFFICIENT && *dc <= MOST_COEFFICIENT;
}

/* Past the coefficients of a block that follow the first; 0 for damage. */
static inline int skip_ac(Bits *bits, const Huffman *table)
{
    int k = 1;
    for (;;) {
        refill(bits);
        for (int i = 0; i < 56 / PEEK; i++) {
            unsigned skip = table->skip_at[bits->bits >> (64 - PEEK)];
            int after = k + (int)(skip >> 6);
            if (after >= 64) { /* the end of the block, or a look at each alone: perhaps it ends between two of these */
                if (!(skip & ENDS) || after >= 128)
                    goto one_by_one;
                drop(bits, skip & 63);
                return 1;
            }
            drop(bits, skip & 63);
            k = after;
        }
        continue;
    one_by_one:
        refill(bits);
        int symbol = next_symbol(bits, table);
        if (symbol < 0)
            return 0;
        int run = symbol >> 4, size = symbol & 15;
        if (size == 0 && run != 15)
            return 1;
        k += run + 1;
        drop(bits, size);
        if (k >= 64)
            return k == 64;
    }
}

/* The coefficients of a block that follow the first, dequantised, in rows. `block` is zero before.
   How many: 0 for none, -1 for damage. */
static inline int next_ac(Bits *bits, const Huffman *table, const uint8_t *quantiser, int16_t *block)
{
    int n = 0;
    for (int k = 1; k < 64; k++) {
        refill(bits);
        int symbol = next_symbol(bits, table);
        if (symbol < 0)
            return -1;
        int run = symbol >> 4, size = symbol & 15;
        if (size == 0) {
            if (run != 15)
                break;
            k += 15;
            continue;
        }
        k += run;
        if (k > 63 || size > 10)
            return -1;
        int value = next_value(bits, size) * quantiser[k];
        if (value < -MOST_COEFFICIENT || value > MOST_COEFFICIENT)
            return -1;
        block[zigzag[k]] = (int16_t)value;
        n++;
    }
    return n;
}

static inline uint8_t clamped(int value)
{
    return value < 0 ? 0 : value > 255 ? 255 : (uint8_t)value;
}

/* A sample from its distance to grey; 0 where libjpeg's kernels would no longer agree. */
static inline int put(uint8_t *sample, int value)
{
    *sample = clamped(value + 128);
    return value >= -512 && value <= 511;
}

/* Two by two samples of a block (jidctred.c, jpeg_idct_2x2, which leaves out rows and columns 2, 4 and 6). */
static int put_2x2(const int16_t *block, uint8_t *samples, size_t stride)
{
    enum { A = 29692, B = 10426, C = 6967, D = 5906 }; /* 3.624509785, 1.272758580, 0.850430095, 0.720959822 of 2^13 */
    int32_t rows[2][8];
    int is_fine = 1;
    for (int i = 0; i < 8; i++) {
        const int16_t *column = block + i;
        int32_t even = (int32_t)column[0] * 32768;
        int32_t odd = A * column[8] - B * column[24] + C * column[40] - D * column[56];
        rows[0][i] = (even + odd + 4096) >> 13;
        rows[1][i] = (even - odd + 4096) >> 13;
    }
    for (int i = 0; i < 2; i++, samples += stride) {
        const int32_t *row = rows[i];
        int32_t even = row[0] * 32768;
        int32_t odd = A * row[1] - B * row[3] + C * row[5] - D * row[7];
        is_fine &= put(samples, (even + odd + (1 << 19)) >> 20) & put(samples + 1, (even - odd + (1 << 19)) >> 20);
    }
    return is_fine;
}

static inline int decode_block(const Jpeg *jpeg, const Component *component, Bits *bits, int *last_dc, uint8_t *samples)
{
    const Huffman *ac = jpeg->huffman[1][component->ac];
    const uint8_t *quantiser = jpeg->quantisers[component->quantiser];
    if (!next_dc(bits, jpeg->huffman[0][component->dc], last_dc))
        return 0;
    int dc = *last_dc * quantiser[0];
    if (component->scale == 1)
        return put(samples, (dc + 4) >> 3) & skip_ac(bits, ac);
    int16_t block[64] = {0};
    int n = next_ac(bits, ac, quantiser, block);
    if (n < 0 || dc < -2 * MOST_COEFFICIENT || dc > 2 * MOST_COEFFICIENT)
        return 0;
    if (n > 0) {
        block[0] = (int16_t)dc;
        return put_2x2(block, samples, (size_t)component->stride);
    }
    int is_fine = put(samples, (dc + 4) >> 3);
    samples[1] = samples[component->stride] = samples[component->stride + 1] = samples[0];
    return is_fine;
}

/* The next part of the scan, up to a marker, without the zeros stuffed after each 0xFF; its length, or -1.
   `jpeg->at` is at the marker's second byte then. */
static Py_ssize_t unstuff(Jpeg *jpeg, uint8_t *into)
{
    uint8_t *start = into;
    for (;;) {
        const uint8_t *marked = memchr(jpeg->at, 0xFF, (size_t)(jpeg->end - jpeg->at));
        if (marked == NULL || marked + 1 == jpeg->end)
            return -1;
        size_t n = (size_t)(marked - jpeg->at);
        memcpy(into, jpeg->at, n);
        into += n;
        jpeg->at = marked + 1;
        if (*jpeg->at != 0)
            return into - start;
        *into++ = 0xFF;
        jpeg->at++;
    }
}

/* The next n units of the scan, from the x-th of row y on; 0 for damage. */
static int decode_part(const Jpeg *jpeg, Bits *from, int64_t n, int n_across, int x, int y)
{
    Bits bits = *from;
    int last_dc[3] = {0, 0, 0};
    for (; n > 0; n--) {
        for (int i = 0; i < jpeg->n_components; i++) {
            const Component *component = &jpeg->components[i];
            int across = component->across, down = component->down, scale = component->scale;
            size_t stride = (size_t)component->stride;
            uint8_t *samples = component->samples + (size_t)y * down * scale * stride + (size_t)x * across * scale;
            for (int row = 0; row < down; row++, samples += stride * scale)
                for (int column = 0; column < across; column++)
                    if (!decode_block(jpeg, component, &bits, &last_dc[i], samples + column * scale))
                        return 0;
        }
        if (bits.next > bits.end + 8)
            return 0;
        if (++x == n_across)
            x = 0, y++;
    }
    *from = bits;
    return 1;
}

/* The samples of all components; 0 for damage. `scratch` holds the rest of the file and MOST_MCU_BYTES. */
static int decode_scan(Jpeg *jpeg, int n_across, int n_down, uint8_t *scratch)
{
    int64_t n_done = 0, n_left = (int64_t)n_across * n_down;
    for (int restart = 0;; restart = (restart + 1) & 7) {
        Py_ssize_t n_bytes = unstuff(jpeg, scratch);
        if (n_bytes < 0)
            return 0;
        memset(scratch + n_bytes, 0, MOST_MCU_BYTES);
        Bits bits = {0, 0, scratch, scratch + n_bytes};
        int64_t n = jpeg->restart_interval && jpeg->restart_interval < n_left ? jpeg->restart_interval : n_left;
        if (!decode_part(jpeg, &bits, n, n_across, (int)(n_done % n_across), (int)(n_done / n_across)))
            return 0;
        n_left -= n;
        n_done += n;
        int64_t n_unused = 8 * (bits.end - bits.next) + bits.n_bits;
        if (n_unused < 0 || n_unused > 7)
            return 0;
        uint8_t marker = *jpeg->at++;
        if (n_left == 0)
            return marker == 0xD9;
        if (marker != 0xD0 + restart)
            return 0;
    }
}

/* Tables */

static int fill(Huffman *table)
{
    int32_t code = 0;
    int n = 0;
    memset(table->symbol_at, 0, sizeof table->symbol_at);
    for (int length = 1; length <= 16; length++, code <<= 1) {
        table->offset[length] = n - code;
        for (int i = 0; i < table->counts[length]; i++, code++, n++) {
            if (code >= 1 << length)
                return 0;
            if (length <= PEEK)
                for (int rest = 0; rest < 1 << (PEEK - length); rest++)
                    table->symbol_at[code << (PEEK - length) | rest] = (uint16_t)(length << 8 | table->symbols[n]);
        }
        table->first_after[length] = code << (16 - length);
    }
    for (int peeked = 0; peeked < 1 << PEEK; peeked++) {
        int n_bits = 0, n_coefficients = 0, ends = 0;
        while (!ends) {
            int entry = table->symbol_at[peeked << n_bits & ((1 << PEEK) - 1)];
            int run = entry >> 4 & 15, size = entry & 15, after = n_bits + (entry >> 8) + size;
            if (entry == 0 || after > PEEK || n_coefficients + run + 1 > 63)
                break;
            ends = size == 0 && run != 15;
            n_coefficients += ends ? 0 : run + 1;
            n_bits = after;
        }
        table->skip_at[peeked] = (uint16_t)(n_bits ? (ends ? ENDS : 0) | n_coefficients << 6 | n_bits : NONE);
    }
    return 1;
}

static int read_huffman(Jpeg *jpeg, const uint8_t *at, const uint8_t *end)
{
    while (at < end) {
        int kind = *at >> 4, which = *at & 15, n = 0;
        if (kind > 1 || which > 3 || end - at < 17)
            return 0;
        if (jpeg->huffman[kind][which] == NULL && (jpeg->huffman[kind][which] = PyMem_RawMalloc(sizeof(Huffman))) == NULL)
            return 0;
        Huffman *table = jpeg->huffman[kind][which];
        for (int length = 1; length <= 16; length++)
            n += table->counts[length] = at[length];
        at += 17;
        if (n > 256 || end - at < n)
            return 0;
        memset(table->symbols, 0, sizeof table->symbols);
        memcpy(table->symbols, at, (size_t)n);
        for (int i = 0; i < n; i++)
            if (kind == 0 && at[i] > 15)
                return 0;
        at += n;
        if (!fill(table))
            return 0;
    }
    return 1;
}

static int read_quantisers(Jpeg *jpeg, const uint8_t *at, const uint8_t *end)
{
    for (; at < end; at += 65) {
        if (*at > 3 || end - at < 65) /* the upper half of the byte: of 16 bits, or nothing that there is */
            return 0;
        memcpy(jpeg->quantisers[*at], at + 1, 64);
        jpeg->has_quantiser[*at] = 1;
    }
    return 1;
}

static int read_frame(Jpeg *jpeg, const uint8_t *at, const uint8_t *end)
{
    if (jpeg->n_components || end - at < 6 || at[0] != 8)
        return 0;
    jpeg->height = at[1] << 8 | at[2];
    jpeg->width = at[3] << 8 | at[4];
    jpeg->n_components = at[5];
    if (!jpeg->height || !jpeg->width || (at[5] != 1 && at[5] != 3) || end - at != 6 + 3 * at[5])
        return 0;
    for (int i = 0; i < jpeg->n_components; i++) {
        const uint8_t *says = at + 6 + 3 * i;
        Component *component = &jpeg->components[i];
        component->id = says[0];
        component->across = says[1] >> 4;
        component->down = says[1] & 15;
        component->quantiser = says[2];
        component->scale = 1;
        int most = i == 0 ? 2 : 1;
        if (component->across < 1 || component->across > most || component->down < 1 || component->down > most || says[2] > 3)
            return 0;
    }
    Component *luma = &jpeg->components[0];
    if (jpeg->n_components == 1)
        luma->across = luma->down = 1; /* of one component, a unit is one block */
    else if (luma->across == 2 && luma->down == 2)
        jpeg->components[1].scale = jpeg->components[2].scale = 2;
    return 1;
}

static int read_scan(Jpeg *jpeg, const uint8_t *at, const uint8_t *end)
{
    int n = jpeg->n_components;
    if (n == 0 || end - at != 4 + 2 * n || at[0] != n)
        return 0;
    for (int i = 0; i < n; i++) {
        Component *component = &jpeg->components[i];
        component->dc = at[2 + 2 * i] >> 4;
        component->ac = at[2 + 2 * i] & 15;
        if (at[1 + 2 * i] != component->id || component->dc > 3 || component->ac > 3)
            return 0;
        if (!jpeg->huffman[0][component->dc] || !jpeg->huffman[1][component->ac] || !jpeg->has_quantiser[component->quantiser])
            return 0;
    }
    if (n == 3) { /* libjpeg's guess of the colours, as far as it is clear (jdapimin.c, default_decompress_parms) */
        const Component *c = jpeg->components;
        if (!jpeg->is_jfif && jpeg->adobe_transform >= 0 ? jpeg->adobe_transform != 1 : 0)
            return 0;
        if (!jpeg->is_jfif && jpeg->adobe_transform < 0 && (c[0].id != 1 || c[1].id != 2 || c[2].id != 3))
            return 0;
    }
    at += 1 + 2 * n;
    return at[0] == 0 && at[1] == 63 && at[2] == 0;
}

/* Up to the first byte of the scan; 0 for all that is not plain. */
static int read_header(Jpeg *jpeg)
{
    if (jpeg->end - jpeg->at < 2 || jpeg->at[0] != 0xFF || jpeg->at[1] != 0xD8)
        return 0;
    for (jpeg->at += 2;;) {
        if (jpeg->end - jpeg->at < 4 || jpeg->at[0] != 0xFF)
            return 0;
        uint8_t marker = jpeg->at[1];
        const uint8_t *at = jpeg->at + 4;
        int length = jpeg->at[2] << 8 | jpeg->at[3];
        if (length < 2 || length > jpeg->end - jpeg->at - 2)
            return 0;
        const uint8_t *end = jpeg->at = at + length - 2;
        int is_fine = 1;
        if (marker == 0xC0 || marker == 0xC1)
            is_fine = read_frame(jpeg, at, end);
        else if (marker == 0xC4)
            is_fine = read_huffman(jpeg, at, end);
        else if (marker == 0xDB)
            is_fine = read_quantisers(jpeg, at, end);
        else if (marker == 0xDD) {
            is_fine = end - at == 2;
            if (is_fine)
                jpeg->restart_interval = at[0] << 8 | at[1];
        } else if (marker == 0xDA)
            return read_scan(jpeg, at, end);
        else if (marker == 0xE0)
            jpeg->is_jfif |= end - at >= 14 && memcmp(at, "JFIF", 5) == 0;
        else if (marker == 0xEE) {
            if (end - at >= 12 && memcmp(at, "Adobe", 5) == 0)
                jpeg->adobe_transform = at[11];
        } else
            is_fine = (marker >= 0xE1 && marker <= 0xEF) || marker == 0xFE;
        if (!is_fine)
            return 0;
    }
}

/* Pixels */

static inline int fix(double value) { return (int)(value * 65536 + 0.5); }

static void put_pixels(const Jpeg *jpeg, uint8_t *rgb, int width, int height)
{
    const Component *c = jpeg->components;
    if (jpeg->n_components == 1) {
        for (int y = 0; y < height; y++)
            memcpy(rgb + (size_t)y * width, c[0].samples + (size_t)y * c[0].stride, (size_t)width);
        return;
    }
    int red[256], blue[256], green_of_cb[256], green_of_cr[256];
    for (int i = 0; i < 256; i++) {
        red[i] = (fix(1.402) * (i - 128) + 32768) >> 16;
        blue[i] = (fix(1.772) * (i - 128) + 32768) >> 16;
        green_of_cr[i] = -fix(0.71414) * (i - 128);
        green_of_cb[i] = -fix(0.34414) * (i - 128) + 32768;
    }
    int across = c[0].across / c[1].scale - 1, down = c[0].down / c[1].scale - 1; /* shifts: 0 or 1, for one chroma of two */
    for (int y = 0; y < height; y++) {
        const uint8_t *luma = c[0].samples + (size_t)y * c[0].stride;
        const uint8_t *cb = c[1].samples + (size_t)(y >> down) * c[1].stride;
        const uint8_t *cr = c[2].samples + (size_t)(y >> down) * c[2].stride;
        for (int x = 0; x < width; x++, rgb += 3) {
            int u = cb[x >> across], v = cr[x >> across];
            rgb[0] = clamped(luma[x] + red[v]);
            rgb[1] = clamped(luma[x] + ((green_of_cb[u] + green_of_cr[v]) >> 16));
            rgb[2] = clamped(luma[x] + blue[u]);
        }
    }
}

static int decode(Jpeg *jpeg, int n_across, int n_down)
{
    int is_fine = 1;
    uint8_t *scratch = PyMem_RawMalloc((size_t)(jpeg->end - jpeg->at) + MOST_MCU_BYTES);
    for (int i = 0; i < jpeg->n_components; i++) {
        Component *component = &jpeg->components[i];
        component->stride = n_across * component->across * component->scale;
        component->samples = PyMem_RawMalloc((size_t)component->stride * n_down * component->down * component->scale);
        is_fine &= component->samples != NULL;
    }
    is_fine = is_fine && scratch != NULL && decode_scan(jpeg, n_across, n_down, scratch);
    PyMem_RawFree(scratch);
    return is_fine;
}

static void release(Jpeg *jpeg)
{
    for (int i = 0; i < 4; i++) {
        PyMem_RawFree(jpeg->huffman[0][i]);
        PyMem_RawFree(jpeg->huffman[1][i]);
    }
    for (int i = 0; i < jpeg->n_components && i < 3; i++)
        PyMem_RawFree(jpeg->components[i].samples);
}

PyObject *jpeg_eighth(PyObject *module, PyObject *data)
{
    (void)module;
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    Jpeg jpeg = {.at = view.buf, .end = (const uint8_t *)view.buf + view.len, .adobe_transform = -1};
    int is_fine;
    Py_BEGIN_ALLOW_THREADS
    is_fine = read_header(&jpeg);
    if (is_fine) {
        int across = 8 * jpeg.components[0].across, down = 8 * jpeg.components[0].down;
        is_fine = decode(&jpeg, (jpeg.width + across - 1) / across, (jpeg.height + down - 1) / down);
    }
    Py_END_ALLOW_THREADS
    PyObject *result = NULL;
    if (is_fine) {
        int width = (jpeg.width + 7) / 8, height = (jpeg.height + 7) / 8;
        PyObject *pixels = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)width * height * jpeg.n_components);
        if (pixels != NULL) {
            put_pixels(&jpeg, (uint8_t *)PyBytes_AS_STRING(pixels), width, height);
            result = Py_BuildValue("(iiN)", width, height, pixels);
        }
    }
    release(&jpeg);
    PyBuffer_Release(&view);
    if (!is_fine)
        Py_RETURN_NONE;
    return result;
}


/* A JPEG at an eighth of its size, to the bit what libjpeg-turbo gives at scale 1/8.

   At that scale a block of 8 x 8 pixels becomes one, which is its first coefficient; the others are only passed over.
   libjpeg-turbo passes over them one by one. Here one look into a table passes over as many as fit into PEEK bits,
   which takes less than half of the time; and of a progressive file, which has them in scans of their own, those scans are
   not read. (Colours at half of the resolution become two by two pixels of a block, for which all of its coefficients count.
   ITU-T T.81, annexes B, F and G; the arithmetic is libjpeg's jidctred.c and jdcolor.c.)

   The bytes are hostile until shown otherwise. Whatever is not a plain, whole JPEG gives None, and whoever asked lets
   libjpeg judge it: there is no reason to guess here, and nothing to report. */

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
    int is_expanded;
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
    /* Of a progressive file */
    int blocks_across, blocks_down; /* as many as are stored: whole units */
    int own_across, own_down;       /* as many as a scan of this component alone has */
    int kept;                       /* coefficients stored of a block: 1, or 64 where the scale is 2 */
    int16_t *coefficients;
    int8_t missing[64];             /* bits of each coefficient that are still to come; -1 for all */
} Component;

typedef struct {
    const uint8_t *at, *end;     /* of the whole file, from after the last marker read */
    int width, height, n_components, restart_interval, is_progressive;
    int units_across, units_down; /* MCUs */
    uint8_t *scratch;            /* for the data of a scan: the rest of the file and MOST_MCU_BYTES */
    int is_jfif, adobe_transform;
    int has_quantiser[4];
    uint8_t quantisers[4][64];
    Huffman *huffman[2][4];      /* DC and AC; what follows `counts` is there once a scan uses the table */
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

static inline int is_likely(int coefficient)
{
    return coefficient >= -MOST_COEFFICIENT && coefficient <= MOST_COEFFICIENT;
}

/* The first coefficient of the next block; 0 for damage. */
static inline int next_dc(Bits *bits, const Huffman *table, int *dc)
{
    refill(bits);
    int size = next_symbol(bits, table);
    if (size < 0 || size > 11)
        return 0;
    *dc += next_value(bits, size);
    return is_likely(*dc);
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
        if (!is_likely(value))
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

/* The data up to the next marker, ready to be read; 0 if no marker follows. */
static int start(Jpeg *jpeg, Bits *bits)
{
    Py_ssize_t n_bytes = unstuff(jpeg, jpeg->scratch);
    if (n_bytes < 0)
        return 0;
    memset(jpeg->scratch + n_bytes, 0, MOST_MCU_BYTES);
    *bits = (Bits){0, 0, jpeg->scratch, jpeg->scratch + n_bytes};
    return 1;
}

/* Whether all of the data were read, and no more; but for what fills up the last byte. */
static int is_used_up(const Bits *bits)
{
    int64_t n_unused = 8 * (bits->end - bits->next) + bits->n_bits;
    return n_unused >= 0 && n_unused <= 7;
}

/* The samples of all components, from the one scan of a file that is not progressive; 0 for damage. */
static int decode_scan(Jpeg *jpeg)
{
    int64_t n_done = 0, n_left = (int64_t)jpeg->units_across * jpeg->units_down;
    for (int restart = 0;; restart = (restart + 1) & 7) {
        Bits bits;
        int64_t n = jpeg->restart_interval && jpeg->restart_interval < n_left ? jpeg->restart_interval : n_left;
        int x = (int)(n_done % jpeg->units_across), y = (int)(n_done / jpeg->units_across);
        if (!start(jpeg, &bits) || !decode_part(jpeg, &bits, n, jpeg->units_across, x, y) || !is_used_up(&bits))
            return 0;
        n_left -= n;
        n_done += n;
        uint8_t marker = *jpeg->at++;
        if (n_left == 0)
            return marker == 0xD9;
        if (marker != 0xD0 + restart)
            return 0;
    }
}

/* Progressive scans (T.81, annex G). Each gives to some components some coefficients, or one bit more of them. */

typedef struct {
    int n_components, which[3];
    int first, last;             /* coefficients, in the order of the zigzag */
    int is_refinement, low;      /* one more bit of them, or all down to this one */
} Scan;

static inline int16_t *block_at(const Component *component, int x, int y)
{
    return component->coefficients + ((size_t)y * component->blocks_across + x) * component->kept;
}

/* The first coefficients of all blocks of a scan, in its order. */
static int decode_dc_scan(const Jpeg *jpeg, const Scan *scan, Bits *from)
{
    Bits bits = *from;
    int last_dc[3] = {0, 0, 0};
    const Component *alone = scan->n_components == 1 ? &jpeg->components[scan->which[0]] : NULL;
    int n_across = alone ? alone->own_across : jpeg->units_across, n_down = alone ? alone->own_down : jpeg->units_down;
    for (int y = 0; y < n_down; y++)
        for (int x = 0; x < n_across; x++) {
            for (int i = 0; i < scan->n_components; i++) {
                const Component *component = &jpeg->components[scan->which[i]];
                int across = alone ? 1 : component->across, down = alone ? 1 : component->down;
                for (int block = 0; block < across * down; block++) {
                    int16_t *coefficient = block_at(component, x * across + block % across, y * down + block / across);
                    if (scan->is_refinement) {
                        refill(&bits);
                        *coefficient = (int16_t)(*coefficient | (int)(bits.bits >> 63) << scan->low);
                        drop(&bits, 1);
                        continue;
                    }
                    if (!next_dc(&bits, jpeg->huffman[0][component->dc], &last_dc[i]))
                        return 0;
                    int value = last_dc[i] * (1 << scan->low);
                    if (!is_likely(value))
                        return 0;
                    *coefficient = (int16_t)value;
                }
            }
            if (bits.next > bits.end + 8)
                return 0;
        }
    *from = bits;
    return 1;
}

/* How many blocks from this one on have no more coefficients in the scan, for a symbol that says so. */
static inline int next_run(Bits *bits, int symbol)
{
    int size = symbol >> 4, n = (1 << size) + (int)(bits->bits >> 1 >> (63 - size));
    drop(bits, size);
    return n;
}

static inline int decode_ac(Bits *bits, const Huffman *table, const Scan *scan, int16_t *block, int *run)
{
    if (*run > 0) {
        --*run;
        return 1;
    }
    for (int k = scan->first; k <= scan->last; k++) {
        refill(bits);
        int symbol = next_symbol(bits, table);
        if (symbol < 0)
            return 0;
        int size = symbol & 15;
        if (size == 0 && symbol >> 4 != 15) {
            *run = next_run(bits, symbol) - 1;
            return 1;
        }
        k += symbol >> 4;
        if (size == 0)
            continue;
        if (k > scan->last || size > 10)
            return 0;
        int value = next_value(bits, size) * (1 << scan->low);
        if (!is_likely(value))
            return 0;
        block[zigzag[k]] = (int16_t)value;
    }
    return 1;
}

/* One more bit for the coefficient if the next bit says so. */
static inline void correct(Bits *bits, int16_t *coefficient, int bit)
{
    refill(bits);
    if (bits->bits >> 63 && !(*coefficient & bit))
        *coefficient = (int16_t)(*coefficient + (*coefficient >= 0 ? bit : -bit));
    drop(bits, 1);
}

static inline int refine_ac(Bits *bits, const Huffman *table, const Scan *scan, int16_t *block, int *run)
{
    int k = scan->first, bit = 1 << scan->low;
    for (; *run == 0 && k <= scan->last; k++) {
        refill(bits);
        int symbol = next_symbol(bits, table);
        if (symbol < 0 || (symbol & 15) > 1)
            return 0;
        int n_zeros = symbol >> 4, value = 0;
        if (symbol & 1) {
            value = bits->bits >> 63 ? bit : -bit;
            drop(bits, 1);
        } else if (n_zeros != 15) {
            *run = next_run(bits, symbol);
            break;
        }
        for (; k <= scan->last; k++) {
            int16_t *coefficient = &block[zigzag[k]];
            if (*coefficient)
                correct(bits, coefficient, bit);
            else if (--n_zeros < 0)
                break;
        }
        if (value) {
            if (k > scan->last)
                return 0;
            block[zigzag[k]] = (int16_t)value;
        }
    }
    if (*run > 0) {
        for (; k <= scan->last; k++)
            if (block[zigzag[k]])
                correct(bits, &block[zigzag[k]], bit);
        --*run;
    }
    return 1;
}

static int decode_ac_scan(const Jpeg *jpeg, const Scan *scan, Bits *from)
{
    Bits bits = *from;
    int run = 0;
    const Component *component = &jpeg->components[scan->which[0]];
    const Huffman *table = jpeg->huffman[1][component->ac];
    for (int y = 0; y < component->own_down; y++)
        for (int x = 0; x < component->own_across; x++) {
            int16_t *block = block_at(component, x, y);
            if (!(scan->is_refinement ? refine_ac : decode_ac)(&bits, table, scan, block, &run) || bits.next > bits.end + 8)
                return 0;
        }
    *from = bits;
    return 1;
}

/* To the marker after a scan that is not needed; 0 if none follows. */
static int pass_over(Jpeg *jpeg)
{
    for (;;) {
        const uint8_t *marked = memchr(jpeg->at, 0xFF, (size_t)(jpeg->end - jpeg->at));
        if (marked == NULL || marked + 1 == jpeg->end)
            return 0;
        jpeg->at = marked + 1;
        if (*jpeg->at != 0)
            return 1;
    }
}

static int decode_progressive_scan(Jpeg *jpeg, const Scan *scan)
{
    Component *component = &jpeg->components[scan->which[0]];
    Bits bits;
    if (scan->first > 0 && component->kept == 1)
        return pass_over(jpeg);
    return start(jpeg, &bits) && (scan->first == 0 ? decode_dc_scan : decode_ac_scan)(jpeg, scan, &bits) && is_used_up(&bits);
}

/* The samples of all components, when all scans were read. */
static int finish(const Jpeg *jpeg)
{
    for (int i = 0; i < jpeg->n_components; i++) {
        const Component *component = &jpeg->components[i];
        const uint8_t *quantiser = jpeg->quantisers[component->quantiser];
        for (int k = 0; k < 64; k++)
            if (component->missing[k] != 0) /* libjpeg would smooth what is not whole */
                return 0;
        for (int y = 0; y < component->blocks_down; y++)
            for (int x = 0; x < component->blocks_across; x++) {
                const int16_t *block = block_at(component, x, y);
                uint8_t *samples = component->samples + ((size_t)y * component->stride + x) * component->scale;
                int dc = block[0] * quantiser[0];
                if (component->kept == 1) {
                    if (!put(samples, (dc + 4) >> 3))
                        return 0;
                    continue;
                }
                int16_t whole[64] = {0};
                if (dc < -2 * MOST_COEFFICIENT || dc > 2 * MOST_COEFFICIENT)
                    return 0;
                whole[0] = (int16_t)dc;
                for (int k = 1; k < 64; k++) {
                    int value = block[zigzag[k]] * quantiser[k];
                    if (!is_likely(value))
                        return 0;
                    whole[zigzag[k]] = (int16_t)value;
                }
                if (!put_2x2(whole, samples, (size_t)component->stride))
                    return 0;
            }
    }
    return 1;
}

/* Tables */

/* Makes a table ready for a scan; 0 where there is none, or libjpeg would refuse it. Not before: a file may have any
   number of tables that no scan uses. */
static int expand(Huffman *table, int is_dc)
{
    int32_t code = 0;
    int n = 0;
    if (table == NULL)
        return 0;
    if (table->is_expanded)
        return 1;
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
        if (table->counts[length] && code >= 1 << length) /* a code of ones alone */
            return 0;
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
    for (int i = 0; i < n; i++)
        if (is_dc && table->symbols[i] > 15)
            return 0;
    table->is_expanded = 1;
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
        table->is_expanded = 0;
        at += n;
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
        memset(component->missing, -1, sizeof component->missing);
        int most = i == 0 ? 2 : 1;
        if (component->across < 1 || component->across > most || component->down < 1 || component->down > most || says[2] > 3)
            return 0;
    }
    Component *luma = &jpeg->components[0];
    if (jpeg->n_components == 1)
        luma->across = luma->down = 1; /* of one component, a unit is one block */
    else if (luma->across == 2 && luma->down == 2)
        jpeg->components[1].scale = jpeg->components[2].scale = 2;
    jpeg->units_across = (jpeg->width + 8 * luma->across - 1) / (8 * luma->across);
    jpeg->units_down = (jpeg->height + 8 * luma->down - 1) / (8 * luma->down);
    return 1;
}

/* When all that is needed for the first scan is known. */
static int make_room(Jpeg *jpeg)
{
    const Component *luma = &jpeg->components[0];
    jpeg->scratch = PyMem_RawMalloc((size_t)(jpeg->end - jpeg->at) + MOST_MCU_BYTES);
    int is_fine = jpeg->scratch != NULL;
    for (int i = 0; i < jpeg->n_components; i++) {
        Component *component = &jpeg->components[i];
        component->blocks_across = jpeg->units_across * component->across;
        component->blocks_down = jpeg->units_down * component->down;
        component->own_across = (jpeg->width * component->across + 8 * luma->across - 1) / (8 * luma->across);
        component->own_down = (jpeg->height * component->down + 8 * luma->down - 1) / (8 * luma->down);
        component->stride = component->blocks_across * component->scale;
        component->samples = PyMem_RawMalloc((size_t)component->stride * component->blocks_down * component->scale);
        is_fine &= component->samples != NULL;
        if (jpeg->is_progressive) {
            component->kept = component->scale == 1 ? 1 : 64;
            size_t n = (size_t)component->blocks_across * component->blocks_down * component->kept;
            component->coefficients = PyMem_RawCalloc(n, sizeof(int16_t));
            is_fine &= component->coefficients != NULL;
        }
    }
    return is_fine;
}

/* libjpeg's guess of the colours, as far as it is clear (jdapimin.c, default_decompress_parms). */
static int is_ycc(const Jpeg *jpeg)
{
    const Component *c = jpeg->components;
    if (jpeg->is_jfif)
        return 1;
    if (jpeg->adobe_transform >= 0)
        return jpeg->adobe_transform == 1;
    return c[0].id == 1 && c[1].id == 2 && c[2].id == 3;
}

/* What the header of a scan says; 0 for what is not plain. */
static int read_scan(Jpeg *jpeg, const uint8_t *at, const uint8_t *end, Scan *scan)
{
    if (jpeg->n_components == 0 || end - at < 6 || at[0] < 1 || at[0] > jpeg->n_components || end - at != 4 + 2 * at[0])
        return 0;
    scan->n_components = at[0];
    const uint8_t *after = at + 1 + 2 * at[0];
    scan->first = after[0];
    scan->last = after[1];
    scan->is_refinement = after[2] >> 4 != 0;
    scan->low = after[2] & 15;
    for (int i = 0, from = 0; i < scan->n_components; i++) {
        while (from < jpeg->n_components && jpeg->components[from].id != at[1 + 2 * i])
            from++;
        if (from == jpeg->n_components)
            return 0;
        Component *component = &jpeg->components[from];
        scan->which[i] = from++;
        component->dc = at[2 + 2 * i] >> 4;
        component->ac = at[2 + 2 * i] & 15;
        if (component->dc > 3 || component->ac > 3 || !jpeg->has_quantiser[component->quantiser])
            return 0;
        if (scan->first == 0 && !scan->is_refinement && !expand(jpeg->huffman[0][component->dc], 1))
            return 0;
        if (scan->last > 0 && !expand(jpeg->huffman[1][component->ac], 0))
            return 0;
    }
    if (!jpeg->is_progressive)
        return scan->n_components == jpeg->n_components && scan->first == 0 && scan->last == 63 && after[2] == 0;
    if (scan->is_refinement && scan->low != (after[2] >> 4) - 1)
        return 0;
    return scan->first == 0 ? scan->last == 0 : scan->n_components == 1 && scan->first <= scan->last && scan->last < 64;
}

/* Notes what a progressive scan gives; 0 for one out of turn. */
static int note(Jpeg *jpeg, const Scan *scan)
{
    if (scan->low > 13)
        return 0;
    for (int i = 0; i < scan->n_components; i++) {
        int8_t *missing = jpeg->components[scan->which[i]].missing;
        if (scan->first > 0 && missing[0] < 0)
            return 0;
        for (int k = scan->first; k <= scan->last; k++) {
            if (missing[k] != (scan->is_refinement ? scan->low + 1 : -1))
                return 0;
            missing[k] = (int8_t)scan->low;
        }
    }
    return 1;
}

static int read_marker(Jpeg *jpeg, uint8_t marker, const uint8_t *at, const uint8_t *end)
{
    switch (marker) {
    case 0xC2:
        jpeg->is_progressive = 1; /* fallthrough */
    case 0xC0:
    case 0xC1:
        return read_frame(jpeg, at, end);
    case 0xC4:
        return read_huffman(jpeg, at, end);
    case 0xDB:
        return jpeg->scratch == NULL && read_quantisers(jpeg, at, end); /* not between scans */
    case 0xDD:
        if (end - at != 2 || jpeg->scratch != NULL)
            return 0;
        jpeg->restart_interval = at[0] << 8 | at[1];
        return 1;
    case 0xE0:
        jpeg->is_jfif |= end - at >= 14 && memcmp(at, "JFIF", 5) == 0;
        return 1;
    case 0xEE:
        if (end - at >= 12 && memcmp(at, "Adobe", 5) == 0)
            jpeg->adobe_transform = at[11];
        return 1;
    default:
        return (marker >= 0xE1 && marker <= 0xEF) || marker == 0xFE;
    }
}

/* The samples of all components; 0 for all that is not plain. */
static int decode(Jpeg *jpeg)
{
    if (jpeg->end - jpeg->at < 2 || jpeg->at[0] != 0xFF || jpeg->at[1] != 0xD8)
        return 0;
    for (jpeg->at += 2;;) {
        if (jpeg->end - jpeg->at < 2 || jpeg->at[0] != 0xFF)
            return 0;
        uint8_t marker = jpeg->at[1];
        if (marker == 0xD9)
            return jpeg->is_progressive && jpeg->scratch != NULL && finish(jpeg);
        if (jpeg->end - jpeg->at < 4)
            return 0;
        const uint8_t *at = jpeg->at + 4;
        int length = jpeg->at[2] << 8 | jpeg->at[3];
        if (length < 2 || length > jpeg->end - jpeg->at - 2)
            return 0;
        const uint8_t *end = jpeg->at = at + length - 2;
        if (marker != 0xDA) {
            if (!read_marker(jpeg, marker, at, end))
                return 0;
            continue;
        }
        Scan scan;
        if (!read_scan(jpeg, at, end, &scan) || (jpeg->scratch == NULL && !make_room(jpeg)))
            return 0;
        if (jpeg->n_components == 3 && !is_ycc(jpeg))
            return 0;
        if (!jpeg->is_progressive)
            return decode_scan(jpeg);
        if (jpeg->restart_interval || !note(jpeg, &scan) || !decode_progressive_scan(jpeg, &scan))
            return 0;
        jpeg->at--; /* to the 0xFF of the marker that ended it */
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

static void release(Jpeg *jpeg)
{
    for (int i = 0; i < 4; i++) {
        PyMem_RawFree(jpeg->huffman[0][i]);
        PyMem_RawFree(jpeg->huffman[1][i]);
    }
    for (int i = 0; i < 3; i++) {
        PyMem_RawFree(jpeg->components[i].samples);
        PyMem_RawFree(jpeg->components[i].coefficients);
    }
    PyMem_RawFree(jpeg->scratch);
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
    is_fine = decode(&jpeg);
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


/* safetensors files (huggingface/safetensors format, README "Format"): 8-byte little-endian header length, a JSON
 * header {name: {dtype, shape, data_offsets}}, then the tensors, row-major, without holes.
 *
 * The reader maps the file; nothing is allocated by a count in the header beyond the header itself, and every offset is
 * checked against the file. The writer writes TARGET.tmp, fsyncs, renames over TARGET and fsyncs the folder, so that
 * TARGET is always either the old whole file or the new whole file. */
#ifndef FOLDSCALE_ENGINE_SAFETENSORS_H
#define FOLDSCALE_ENGINE_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "engine/status.h"

typedef enum { ST_F64, ST_F32, ST_BF16, ST_I64, ST_I32, ST_U8, ST_BOOL, ST_I16, ST_DTYPES } StDtype;

enum { ST_MAX_RANK = 8 };

typedef struct StTensor {
    const char *name; /* owned by the StFile */
    StDtype dtype;
    int rank;
    int64_t shape[ST_MAX_RANK];
    int64_t count;    /* product of shape */
    const void *data; /* into the mapped file; not necessarily aligned: read it through st_read_* */
    size_t bytes;
} StTensor;

typedef struct StFile StFile;

const char *st_dtype_name(StDtype dtype); /* "F32" ... as in the file */
size_t st_dtype_bytes(StDtype dtype);

/* Errors: ERR_IO (missing, unreadable), ERR_INPUT (not a safetensors file, truncated, overlapping or out-of-range
 * offsets, shape and size that disagree, unknown dtype, duplicate name), each naming the file and the tensor. */
Status st_open(const char *path, StFile **file_out);
void st_close(StFile **file);

const char *st_path(const StFile *file);
int64_t st_count(const StFile *file);
const StTensor *st_at(const StFile *file, int64_t index);      /* in file order */
const StTensor *st_find(const StFile *file, const char *name); /* NULL when absent */
const char *st_metadata(const StFile *file, const char *key);  /* NULL when absent */

/* ERR_INPUT when the file has a checksum (st_writer_checksum) and the tensors are not those it was made of. */
Status st_verify(const StFile *file);

/* Element conversion from any stored dtype (count elements starting at `first`). ERR_INPUT when the elements are not
 * all in the tensor, or (to integers) when a stored value is not an integer that fits. */
Status st_read_f64(const StTensor *tensor, int64_t first, int64_t count, double *values_out);
Status st_read_f32(const StTensor *tensor, int64_t first, int64_t count, float *values_out);
Status st_read_i64(const StTensor *tensor, int64_t first, int64_t count, int64_t *values_out);

/* Writing: declare all tensors (and metadata), then commit writes them in the order of declaration. Names and metadata
 * keys that repeat are ERR_INTERNAL at commit. */
typedef struct StWriter StWriter;
Status st_writer_create(const char *path, StWriter **writer_out);
Status st_writer_metadata(StWriter *writer, const char *key, const char *value);
/* `data` must stay valid until commit. */
Status st_writer_add(StWriter *writer, const char *name, StDtype dtype, int rank, const int64_t *shape,
                     const void *data);
/* Metadata "crc32": CRC-32 of the tensors' bytes in the order of the file, eight hexadecimal digits. Behind the last
 * tensor. */
Status st_writer_checksum(StWriter *writer);
/* Writes, fsyncs and renames. On failure (ERR_IO: full disk ...) the temporary file is removed and the old target is
 * untouched. */
Status st_writer_commit(StWriter *writer);
void st_writer_destroy(StWriter **writer);

#endif

/* The container of a pack: named, typed, compressed records in one file.
 *
 *     "FSPACK02"                                                       8 bytes
 *     records, each: head (56 bytes), name, zstd frame; padded to 8
 *       head: "FSRECORD", kind u32, name length u32, stored bytes u64, raw bytes u64,
 *             release date 8 bytes YYYYMMDD (0: unknown), stamp of the inputs u64 (data/stamp.h), crc32 of the frame
 *             u32, crc32 of head and name u32
 *     index: for each record, by kind and name: offset u64; then its crc32 u64
 *     "FSPACKIX", offset of the index u64, number of records u64       24 bytes
 *
 * Little-endian. While it is written the file is called PATH.part and has no index; a record is valid when both its
 * checksums are, so after an interruption writing goes on behind the last valid record. Readers map the file. Offsets
 * and sizes are checked against the file; a record's raw size is believed only if the zstd frame says the same. */
#ifndef FOLDSCALE_DATA_PACK_FILE_H
#define FOLDSCALE_DATA_PACK_FILE_H

#include <stdbool.h>
#include <stdint.h>

#include "data/pack_bytes.h"
#include "engine/arena.h"
#include "engine/status.h"

typedef enum PackKind { PACK_CHAIN, PACK_ALIGNMENT, PACK_KINDS } PackKind;

/* --- writing; pack_writer_add may be called by several threads ---------------------------------------------------- */

typedef struct PackWriter PackWriter;

/* Creates PATH.part or continues one. ERR_IO; ERR_INPUT when PATH.part is something else or another process writes it.
 */
Status pack_writer_open(const char *path, int level, PackWriter **writer_out);
/* Drops those records of an interrupted run for which `keep` says no: they are not in the index, and may be made anew
 * (their bytes stay, unless none is kept). Before the first add. */
void pack_writer_revise(PackWriter *writer,
                        bool (*keep)(void *context, PackKind kind, const char *name, uint64_t stamp), void *context);
bool pack_writer_has(PackWriter *writer, PackKind kind, const char *name);
/* Compresses and appends; a record that is there already is left as it is. */
Status pack_writer_add(PackWriter *writer, PackKind kind, const char *name, const char *release_date, uint64_t stamp,
                       const ByteWriter *content);
/* Records of an interrupted run that were kept; bytes so far before and after compression (of this run). */
void pack_writer_sizes(PackWriter *writer, int64_t *kept_out, int64_t *raw_out, int64_t *stored_out);
/* Writes the index, syncs, renames to PATH. */
Status pack_writer_finish(PackWriter *writer);
/* Without finish: PATH.part stays, to be continued. */
void pack_writer_close(PackWriter **writer);

/* --- reading; thread-safe ----------------------------------------------------------------------------------------- */

typedef struct PackFile PackFile;

Status pack_file_open(const char *path, PackFile **file_out);
void pack_file_close(PackFile **file);
const char *pack_file_path(const PackFile *file);

/* Records of one kind, by name in byte order. */
int64_t pack_file_count(const PackFile *file, PackKind kind);
const char *pack_file_name(const PackFile *file, PackKind kind, int64_t index);
/* -1 when there is none. */
int64_t pack_file_find(const PackFile *file, PackKind kind, const char *name);
/* YYYY-MM-DD or "". */
void pack_file_date(const PackFile *file, PackKind kind, int64_t index, char date_out[11]);
/* Checks and decompresses a record into the arena; the reader stands at its beginning. */
Status pack_file_read(const PackFile *file, PackKind kind, int64_t index, Arena *arena, ByteReader *reader_out);
void pack_file_sizes(const PackFile *file, PackKind kind, int64_t index, int64_t *raw_out, int64_t *stored_out);

#endif

import { closeSync, fstatSync, openSync, readSync } from "node:fs";
import { crc32, inflateRawSync } from "node:zlib";
import { FormatError, IoError, UnsupportedError } from "@llm/core";

/** A file inside an archive. */
export interface ZipEntry {
  name: string;
  /** Bytes of its content. */
  size: number;
}

/** An archive's table of contents. Content is read when asked for. */
export interface ZipArchive {
  readonly entries: ReadonlyMap<string, ZipEntry>;
  /**
   * The content of an entry, or `bytes` bytes of it from `begin`; stored entries are read in place. A whole entry is
   * checked against its CRC-32 (0 counts as none: some writers leave it out).
   * @throws {FormatError} no such entry, or damaged
   */
  read(name: string, begin?: number, bytes?: number): Uint8Array<ArrayBuffer>;
}

interface Located extends ZipEntry {
  packed: number;
  method: number;
  crc: number;
  header: number;
}

const endBytes = 22;

/** Reads exactly `bytes` bytes of a file from `position`. @throws {FormatError} the file ends before */
export function readBytes(file: string, position: number, bytes: number): Uint8Array<ArrayBuffer> {
  let descriptor: number;
  try {
    descriptor = openSync(file, "r");
  } catch (cause) {
    throw new IoError(`[readBytes] cannot open ${file}: ${(cause as Error).message}`, { file }, cause);
  }
  try {
    const fileBytes = fstatSync(descriptor).size;
    if (!Number.isSafeInteger(position) || position < 0 || bytes < 0 || position + bytes > fileBytes) {
      throw new FormatError(`[readBytes] ${file} has ${fileBytes} bytes, expected ${bytes} at ${position} (cut off?)`, {
        file,
        offset: position,
      });
    }
    const target = new Uint8Array(new ArrayBuffer(bytes));
    for (let done = 0; done < bytes;) {
      const count = readSync(descriptor, target, done, Math.min(bytes - done, 1 << 30), position + done);
      if (count === 0)
        throw new IoError(`[readBytes] ${file} became shorter while it was read`, { file, offset: position + done });
      done += count;
    }
    return target;
  } finally {
    closeSync(descriptor);
  }
}

/**
 * Opens a zip archive (zip64 too; entries stored or deflated, not encrypted, one volume).
 * @throws {FormatError} not a zip archive or damaged; `data.file`, `data.offset`
 * @throws {UnsupportedError} another compression, or encryption
 * @see https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT sections 4.3.12 – 4.3.16
 */
export function openZip(file: string, fileBytes: number): ZipArchive {
  const fail = (message: string, offset: number): FormatError =>
    new FormatError(`[openZip] ${file}: ${message}`, { file, offset });
  const viewAt = (position: number, bytes: number): DataView => new DataView(readBytes(file, position, bytes).buffer);

  // The end record is the last thing but a comment of at most 65535 bytes.
  const tail = Math.min(fileBytes, endBytes + 0xffff);
  const view = viewAt(fileBytes - tail, tail);
  let end = tail - endBytes;
  while (
    end >= 0 &&
    !(view.getUint32(end, true) === 0x06054b50 && end + endBytes + view.getUint16(end + 20, true) === tail)
  )
    end--;
  if (end < 0) throw fail("expected a zip archive, found no end record (cut off?)", Math.max(0, fileBytes - endBytes));

  let count = view.getUint16(end + 10, true);
  let directoryBytes = view.getUint32(end + 12, true);
  let directory = view.getUint32(end + 16, true);
  const endPosition = fileBytes - tail + end;
  if (
    (count === 0xffff || directoryBytes === 0xffffffff || directory === 0xffffffff) &&
    end >= 20 &&
    view.getUint32(end - 20, true) === 0x07064b50
  ) {
    const record = viewAt(Number(view.getBigUint64(end - 12, true)), 56);
    if (record.getUint32(0, true) !== 0x06064b50) throw fail("expected a zip64 end record", endPosition - 20);
    count = Number(record.getBigUint64(32, true));
    directoryBytes = Number(record.getBigUint64(40, true));
    directory = Number(record.getBigUint64(48, true));
  }
  if (directory + directoryBytes > endPosition || count * 46 > directoryBytes)
    throw fail("the table of contents does not fit into the file", endPosition);

  const table = viewAt(directory, directoryBytes);
  const entries = new Map<string, Located>();
  let at = 0;
  for (let index = 0; index < count; index++) {
    const here = directory + at;
    if (at + 46 > directoryBytes || table.getUint32(at, true) !== 0x02014b50)
      throw fail(`expected entry ${index} of ${count} of the table of contents`, here);
    const nameBytes = table.getUint16(at + 28, true);
    const extraBytes = table.getUint16(at + 30, true);
    const next = at + 46 + nameBytes + extraBytes + table.getUint16(at + 32, true);
    if (next > directoryBytes) throw fail(`entry ${index} of the table of contents is cut off`, here);
    const name = new TextDecoder().decode(new Uint8Array(table.buffer, at + 46, nameBytes));
    const entry: Located = {
      name,
      crc: table.getUint32(at + 16, true),
      packed: table.getUint32(at + 20, true),
      size: table.getUint32(at + 24, true),
      method: table.getUint16(at + 10, true),
      header: table.getUint32(at + 42, true),
    };
    // The zip64 extra field holds, in this order, those of the three that are all ones above.
    for (let extra = at + 46 + nameBytes; extra + 4 <= at + 46 + nameBytes + extraBytes;) {
      const length = table.getUint16(extra + 2, true);
      if (table.getUint16(extra, true) === 1) {
        let field = extra + 4;
        const take = (): number => {
          field += 8;
          if (field > extra + 4 + length) throw fail(`the zip64 field of ${name} is cut off`, here);
          return Number(table.getBigUint64(field - 8, true));
        };
        if (entry.size === 0xffffffff) entry.size = take();
        if (entry.packed === 0xffffffff) entry.packed = take();
        if (entry.header === 0xffffffff) entry.header = take();
      }
      extra += 4 + length;
    }
    if ((table.getUint16(at + 8, true) & 1) !== 0)
      throw new UnsupportedError(`[openZip] ${file}: ${name} is encrypted, expected a plain archive`, { file, name });
    if (entry.method !== 0 && entry.method !== 8) {
      throw new UnsupportedError(
        `[openZip] ${file}: ${name} is compressed by method ${entry.method}, expected stored (0) or deflate (8)`,
        { file, name },
      );
    }
    if (entries.has(name)) throw fail(`expected each name once, got ${JSON.stringify(name)} twice`, here);
    entries.set(name, entry);
    at = next;
  }

  return {
    entries,
    read(name, begin = 0, bytes) {
      const entry = entries.get(name);
      if (entry === undefined) throw fail(`expected an entry ${JSON.stringify(name)}`, directory);
      const wanted = bytes ?? entry.size - begin;
      if (begin < 0 || wanted < 0 || begin + wanted > entry.size)
        throw fail(`${name} has ${entry.size} bytes, expected ${wanted} at ${begin}`, entry.header);
      const local = viewAt(entry.header, 30);
      if (local.getUint32(0, true) !== 0x04034b50) throw fail(`expected the header of ${name}`, entry.header);
      const data = entry.header + 30 + local.getUint16(26, true) + local.getUint16(28, true);
      if (entry.method === 0 && entry.packed !== entry.size)
        throw fail(`${name} is stored in ${entry.packed} bytes, expected ${entry.size}`, entry.header);
      if (entry.method === 0 && wanted < entry.size) return readBytes(file, data + begin, wanted);

      let content = readBytes(file, data, entry.packed);
      if (entry.method === 8) {
        try {
          content = new Uint8Array(inflateRawSync(content, { maxOutputLength: Math.max(entry.size, 1) }));
        } catch (cause) {
          throw new FormatError(
            `[openZip] ${file}: ${name} cannot be unpacked: ${(cause as Error).message}`,
            { file, name },
            cause,
          );
        }
        if (content.length !== entry.size)
          throw fail(`${name} unpacks to ${content.length} bytes, expected ${entry.size}`, entry.header);
      }
      if (entry.crc !== 0 && crc32(content) !== entry.crc) throw fail(`${name} is damaged: its CRC-32 differs`, data);
      return wanted < entry.size ? content.slice(begin, begin + wanted) : content;
    },
  };
}

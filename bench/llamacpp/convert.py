"""Writes a GGUF with its weight matrices as BF16 or Q8_0, from one of any type.

usage: convert.py IN.gguf OUT.gguf BF16|Q8_0      (gguf 0.19, numpy)
"""
import sys
import gguf
from gguf.quants import dequantize, quantize

src, dst, name = sys.argv[1:]
kind = gguf.GGMLQuantizationType[name]
reader = gguf.GGUFReader(src)
arch = reader.fields["general.architecture"].contents()
writer = gguf.GGUFWriter(dst, arch)
for key, field in reader.fields.items():
    if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type", "general.quantization_version"):
        continue
    value = field.contents()
    if field.types[0] == gguf.GGUFValueType.ARRAY:
        writer.add_array(key, value)
    else:
        writer.add_key_value(key, value, field.types[0])
for t in reader.tensors:
    values = dequantize(t.data, t.tensor_type)
    if len(t.shape) > 1:
        writer.add_tensor(t.name, quantize(values, kind), raw_dtype=kind)
    else:
        writer.add_tensor(t.name, values)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()

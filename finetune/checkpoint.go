package finetune

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"math"
)

// Checkpoint is a lane between two optimizer steps: what an exact resume needs. The order of the examples follows from the job's
// seed and the cursor, so there is no other generator state.
type Checkpoint struct {
	position
	B, M, V []float32 // [rank·OutTotal]: the fp32 master and AdamW's moments
	Best    []float32 // B of the best evaluation; may be empty
}

const checkpointMagic = "bhivectk"

// checkpointHead comes after the magic and its own length (uint32, little-endian); the numbers follow, and a CRC-32C of everything before.
type checkpointHead struct {
	Format   int      `json:"format"`
	Job      string   `json:"job"`
	Position position `json:"position"`
	N        int      `json:"n"` // numbers in B, M and V each
	Best     int      `json:"best"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Encode writes the checkpoint of a job.
func (c *Checkpoint) Encode(w io.Writer, job string) error {
	sum := crc32.New(castagnoli)
	out := io.MultiWriter(w, sum)
	head, err := json.Marshal(checkpointHead{Format: 1, Job: job, Position: c.position, N: len(c.B), Best: len(c.Best)})
	if err != nil {
		return fmt.Errorf("encoding a checkpoint: %w", err)
	}
	var b bytes.Buffer
	b.WriteString(checkpointMagic)
	b.Write(binary.LittleEndian.AppendUint32(nil, uint32(len(head))))
	b.Write(head)
	if _, err := out.Write(b.Bytes()); err != nil {
		return err
	}
	buf := make([]byte, 0, 64<<10)
	for _, list := range [][]float32{c.B, c.M, c.V, c.Best} {
		for len(list) > 0 {
			n := min(len(list), cap(buf)/4)
			buf = buf[:0]
			for _, f := range list[:n] {
				buf = binary.LittleEndian.AppendUint32(buf, math.Float32bits(f))
			}
			if _, err := out.Write(buf); err != nil {
				return err
			}
			list = list[n:]
		}
	}
	_, err = w.Write(binary.LittleEndian.AppendUint32(nil, sum.Sum32()))
	return err
}

// DecodeCheckpoint reads what Encode wrote for that job with n numbers in B; ErrCheckpoint for anything else.
func DecodeCheckpoint(r io.Reader, job string, n int) (*Checkpoint, error) {
	sum := crc32.New(castagnoli)
	in := io.TeeReader(r, sum)
	bad := func(format string, args ...any) (*Checkpoint, error) {
		return nil, fmt.Errorf("%w: %s", ErrCheckpoint, fmt.Sprintf(format, args...))
	}
	start := make([]byte, len(checkpointMagic)+4)
	if _, err := io.ReadFull(in, start); err != nil || string(start[:len(checkpointMagic)]) != checkpointMagic {
		return bad("it does not begin as one")
	}
	size := binary.LittleEndian.Uint32(start[len(checkpointMagic):])
	if size > 1<<16 {
		return bad("its head has %d bytes", size)
	}
	text := make([]byte, size)
	if _, err := io.ReadFull(in, text); err != nil {
		return bad("its head is cut off")
	}
	var head checkpointHead
	if err := json.Unmarshal(text, &head); err != nil {
		return bad("its head: %v", err)
	}
	if head.Format != 1 || head.Job != job || head.N != n || head.Best != 0 && head.Best != n {
		return bad("it is of format %d, job %q and %d numbers, not of format 1, job %q and %d", head.Format, head.Job, head.N, job, n)
	}
	c := &Checkpoint{position: head.Position}
	buf := make([]byte, 64<<10)
	for _, p := range []struct {
		to *[]float32
		n  int
	}{{&c.B, n}, {&c.M, n}, {&c.V, n}, {&c.Best, head.Best}} {
		list := make([]float32, 0, p.n)
		for len(list) < p.n {
			b := buf[:4*min(p.n-len(list), len(buf)/4)]
			if _, err := io.ReadFull(in, b); err != nil {
				return bad("it is cut off")
			}
			for ; len(b) > 0; b = b[4:] {
				list = append(list, math.Float32frombits(binary.LittleEndian.Uint32(b)))
			}
		}
		*p.to = list
	}
	want := sum.Sum32()
	if _, err := io.ReadFull(r, buf[:4]); err != nil || binary.LittleEndian.Uint32(buf) != want {
		return bad("its checksum is wrong")
	}
	return c, nil
}

package adapters

// stream is splitmix64, keyed so that every row of a basis has a sequence of its own. It is fixed for ever: bases
// are regenerated from their seed, and test digests pin it.
type stream struct{ state uint64 }

func newStream(keys ...uint64) *stream {
	s := &stream{}
	for _, k := range keys {
		s.state ^= k
		s.state = s.next()
	}
	return s
}

func (s *stream) next() uint64 {
	s.state += 0x9e3779b97f4a7c15
	z := s.state
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// uniform is in [0, 1), a multiple of 2⁻⁵³.
func (s *stream) uniform() float64 { return float64(float64(s.next()>>11) * 0x1p-53) }

// bell is nearly normal, of variance 1: the sum of twelve uniforms. Without transcendental functions it comes out
// the same everywhere.
func (s *stream) bell() float64 {
	sum := -6.0
	for range 12 {
		sum += s.uniform()
	}
	return sum
}

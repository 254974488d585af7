package cuda

import (
	"errors"
	"testing"

	"bhive/kernels"
)

// TestUnavailable: where no GPU can be used, the program runs all the same, and Open and Probe say why.
func TestUnavailable(t *testing.T) {
	device, err := Probe()
	if err == nil {
		t.Skipf("there is %s", device)
	}
	if !errors.Is(err, ErrUnavailable) {
		t.Errorf("Probe: %v", err)
	}
	if _, err := Open(Config{Working: kernels.BF16}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Open: %v", err)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{{Device: -1}, {Working: kernels.I32}} {
		if err := c.Validate(); !errors.Is(err, ErrConfig) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := (Config{Working: kernels.BF16}).Validate(); err != nil {
		t.Error(err)
	}
}

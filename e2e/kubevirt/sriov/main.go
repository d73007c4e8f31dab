// What a cluster has for KubeVirt's own `sriov: {}`, as far as it counts for a comparison: a device plugin that gives VFs of vfio-pci
// to pods, and the CNI plugin that then gives a VF its MAC. In place of the SR-IOV network device plugin and the SR-IOV CNI plugin.
//
//	sriov RESOURCE VF...    the device plugin: VFs by their PCI addresses; runs until it is killed
//	sriov                   the CNI plugin, by its environment
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "kubevirt.io/kubevirt/pkg/virt-handler/device-manager/deviceplugin/v1beta1"
)

const (
	devices = "/sys/bus/pci/devices"
	// Where Multus looks for what a device is; it tells KubeVirt.
	info = "/var/run/k8s.cni.cncf.io/devinfo/dp"
)

type plugin struct {
	vfs []string
}

func (p *plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

func (p *plugin) PreStartContainer(context.Context, *api.PreStartContainerRequest) (*api.PreStartContainerResponse, error) {
	return &api.PreStartContainerResponse{}, nil
}

func (p *plugin) ListAndWatch(_ *api.Empty, stream api.DevicePlugin_ListAndWatchServer) error {
	var all api.ListAndWatchResponse
	for _, vf := range p.vfs {
		all.Devices = append(all.Devices, &api.Device{ID: vf, Health: api.Healthy})
	}
	if err := stream.Send(&all); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

func (p *plugin) Allocate(_ context.Context, asked *api.AllocateRequest) (*api.AllocateResponse, error) {
	var answer api.AllocateResponse
	for _, request := range asked.ContainerRequests {
		var container api.ContainerAllocateResponse
		paths := []string{"/dev/vfio/vfio"}
		for _, vf := range request.DevicesIDs {
			group, err := os.Readlink(filepath.Join(devices, vf, "iommu_group"))
			if err != nil {
				return nil, err
			}
			paths = append(paths, "/dev/vfio/"+filepath.Base(group))
		}
		for _, path := range paths {
			container.Devices = append(container.Devices, &api.DeviceSpec{HostPath: path, ContainerPath: path, Permissions: "rw"})
		}
		answer.ContainerResponses = append(answer.ContainerResponses, &container)
	}
	return &answer, nil
}

// tell writes what each VF is.
func tell(resource string, vfs []string) error {
	if err := os.MkdirAll(info, 0o755); err != nil {
		return err
	}
	for _, vf := range vfs {
		device := map[string]any{"type": "pci", "version": "1.1.0", "pci": map[string]string{"pci-address": vf}}
		text, err := json.Marshal(device)
		if err != nil {
			return err
		}
		name := strings.ReplaceAll(resource, "/", "-") + "-" + vf + "-device.json"
		if err := os.WriteFile(filepath.Join(info, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func serve(resource string, vfs []string) error {
	if err := tell(resource, vfs); err != nil {
		return err
	}
	endpoint := filepath.Base(resource) + ".sock"
	socket := filepath.Join(api.DevicePluginPath, endpoint)
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	api.RegisterDevicePluginServer(server, &plugin{vfs: vfs})
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	kubelet, err := grpc.NewClient("unix://"+api.KubeletSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer kubelet.Close()
	request := &api.RegisterRequest{Version: api.Version, Endpoint: endpoint, ResourceName: resource}
	if _, err := api.NewRegistrationClient(kubelet).Register(context.Background(), request); err != nil {
		return err
	}
	return <-failed
}

// configure gives a VF the MAC that Multus was asked for.
func configure(vf, mac string) error {
	pf := filepath.Join(devices, vf, "physfn")
	netdevs, err := os.ReadDir(filepath.Join(pf, "net"))
	if err != nil || len(netdevs) == 0 {
		return fmt.Errorf("the PF of %s has no netdev: %v", vf, err)
	}
	all, err := filepath.Glob(filepath.Join(pf, "virtfn*"))
	if err != nil {
		return err
	}
	for _, one := range all {
		if to, err := os.Readlink(one); err != nil || filepath.Base(to) != vf {
			continue
		}
		number := strings.TrimPrefix(filepath.Base(one), "virtfn")
		return exec.Command("ip", "link", "set", "dev", netdevs[0].Name(), "vf", number, "mac", mac).Run()
	}
	return fmt.Errorf("%s is no VF", vf)
}

func add() error {
	var config struct {
		CNIVersion string `json:"cniVersion"`
		DeviceID   string `json:"deviceID"`
	}
	if err := json.NewDecoder(os.Stdin).Decode(&config); err != nil {
		return err
	}
	var mac string
	for _, arg := range strings.Split(os.Getenv("CNI_ARGS"), ";") {
		if value, is := strings.CutPrefix(arg, "MAC="); is {
			mac = value
		}
	}
	if config.DeviceID == "" || mac == "" {
		return fmt.Errorf("VF %q, MAC %q", config.DeviceID, mac)
	}
	if err := configure(config.DeviceID, mac); err != nil {
		return err
	}
	link := map[string]string{"name": os.Getenv("CNI_IFNAME"), "mac": mac, "sandbox": os.Getenv("CNI_NETNS")}
	result := map[string]any{"cniVersion": config.CNIVersion, "interfaces": []any{link}}
	return json.NewEncoder(os.Stdout).Encode(result)
}

func cni(command string) error {
	switch command {
	case "ADD":
		return add()
	case "VERSION":
		_, err := fmt.Println(`{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}`)
		return err
	default:
		return nil
	}
}

func main() {
	if command := os.Getenv("CNI_COMMAND"); command != "" {
		if err := cni(command); err != nil {
			_ = json.NewEncoder(os.Stdout).Encode(map[string]any{"cniVersion": "1.0.0", "code": 999, "msg": err.Error()})
			os.Exit(1)
		}
		return
	}
	if len(os.Args) < 3 {
		log.Fatal("usage: sriov RESOURCE VF...")
	}
	log.Fatal(serve(os.Args[1], os.Args[2:]))
}
